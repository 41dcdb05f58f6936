"""`flash-attn3 hub show`: one repository or one wheel."""

from __future__ import annotations

import argparse
import dataclasses
import json

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.checkout import Resolved, resolve
from flash_attn3_sm121.hub.commands.common import add_hub_option, human_size, open_hub, print_json, table
from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.variants import INFO_FILE, Variant


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="ORG/NAME[@REVISION] or WHEEL")
    add_hub_option(parser)
    parser.add_argument("--files", action="store_true", help="list every file with its size and sha256")


def run(args: argparse.Namespace) -> int:
    hub = open_hub(args)
    index = hub.index()
    if args.name in index.wheels:
        return _wheel(index, args.name, as_json=args.json)
    name, _, revision = args.name.partition("@")
    repo = index.repo(name)
    if revision and repo.resolve(revision) is None:
        raise HubError(f"{name} has no revision {revision!r}", hint=f"flash-attn3 hub show {name}")
    found = resolve(hub, index, name, revision or None)
    if args.json:
        files = {path: dataclasses.asdict(entry) for path, entry in found.manifest.files.items()}
        print_json({"repo": name, "revision": found.revision, **dataclasses.asdict(repo), "files": files})
        return 0
    print(f"{name}  ({repo.flavour})")
    rows = [
        (sha[:12], entry.version, entry.created, ", ".join(sorted(r for r, s in repo.refs.items() if s == sha)) or "-")
        for sha, entry in sorted(repo.revisions.items(), key=lambda item: item[1].created, reverse=True)
    ]
    print(table(("REVISION", "VERSION", "CREATED", "REFS"), rows))
    _revision(hub, found)
    if args.files:
        for path, entry in sorted(found.manifest.files.items()):
            print(f"{entry.sha256}  {entry.size:>10}  {path}")
    return 0


def _wheel(index: Index, name: str, *, as_json: bool) -> int:
    entry = dataclasses.asdict(index.wheels[name])
    if as_json:
        print_json({"filename": name, **entry})
        return 0
    print(name)
    for key, value in entry.items():
        text = ", ".join(value) if isinstance(value, (tuple, list)) else value
        print(f"  {key.replace('_', ' '):<16}{text if text != '' else '-'}")
    return 0


def _revision(hub: Hub, found: Resolved) -> None:
    print(f"revision {found.revision} (version {found.manifest.version})")
    for variant in found.manifest.variants:
        folder = Variant.parse(variant).folder(found.repo)
        files = found.manifest.under(folder)
        info = json.loads(hub.read(files[INFO_FILE]))
        print(f"  {folder}: {len(files)} files, {human_size(sum(entry.size for entry in files.values()))}")
        for platform, item in sorted(info["platforms"].items()):
            code = ", ".join(item["images"]) or "Python only"
            print(f"    {platform}: {code}, from {item['wheel']}")
