"""`flash-attn3 hub list`, `show` and `check`: they only look."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from flash_attn3_sm121.console import Block, Table, Verbatim, format_bytes
from flash_attn3_sm121.console import show as show_blocks
from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.checkout import Resolved, resolve
from flash_attn3_sm121.hub.commands.options import add_hub_option, counted, open_hub, print_json, report, trusted_keys
from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.variants import INFO_FILE, Variant


def configure_list(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    parser.add_argument("--names", action="store_true", help="only the wheels' file names, one a line")


def list_all(args: argparse.Namespace) -> int:
    hub = open_hub(args)
    current = hub.current()
    index, key = current.index, current.signer or ""
    earlier = [number for number in hub.generations() if number < index.generation]
    if args.json:
        print_json({"root": str(hub.layout.root), "key": key, "earlier": earlier, **dataclasses.asdict(index)})
        return 0
    if args.names:
        print("\n".join(sorted(index.wheels)))
        return 0
    dated = f" of {index.created}" if index.created else ""
    state = f"generation {index.generation}{dated}, {f'signed by {key}' if key else 'not signed'}"
    wheels = wheel_table(index) if index.wheels else "  no wheels; flash-attn3 hub publish WHEEL..."
    numbers = ", ".join(map(str, earlier))
    back = [f"earlier ones that are kept: {numbers}; flash-attn3 hub rollback --to N"] if earlier else []
    show_blocks([str(hub.layout.root), state, *back, "", wheels])
    if index.repos:
        show_blocks(["", repo_table(index)])
    return 0


def wheel_table(index: Index) -> Table:
    """A line for each wheel, the one that came last first. A version stays whole: it names the machine code, too."""
    rows = [
        (e.platform.removeprefix("linux_"), ", ".join(e.images) or "-", format_bytes(e.size), e.verify, e.version)
        for e in sorted(index.wheels.values(), key=lambda entry: (-entry.added, entry.version, entry.platform))
    ]
    head = ("PLATFORM", "MACHINE CODE", "SIZE", "VERIFY", "VERSION")
    longest = max((len(row[-1]) for row in rows), default=0)
    return Table(head=head, rows=rows, right=frozenset({2}), spare=(1, 3), narrowest=longest)


def repo_table(index: Index) -> Table:
    """A line for each repository, and the names of its revisions."""
    refs = {name: ", ".join(sorted(repo.refs, key=_ref_order)) for name, repo in index.repos.items()}
    rows = [
        (name, repo.flavour, repo.refs.get("main", "-")[:12], refs[name]) for name, repo in sorted(index.repos.items())
    ]
    return Table(head=("REPOSITORY", "FLAVOUR", "MAIN", "REFS"), rows=rows, spare=(1, 2))


def _ref_order(ref: str) -> tuple[bool, bool, str]:
    return (ref != "main", not ref.startswith("v"), ref)


def configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="ORG/NAME, ORG/NAME@REVISION or a wheel's file name")
    add_hub_option(parser)
    parser.add_argument("--files", action="store_true", help="list every file with its size and sha256")


def show(args: argparse.Namespace) -> int:
    hub = open_hub(args)
    index = hub.index()
    if args.name in index.wheels:
        return _wheel(args, index, args.name)
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
        for sha, entry in repo.history
    ]
    show_blocks([Table(head=("REVISION", "VERSION", "CREATED", "REFS"), rows=rows)])
    _revision(hub, found)
    if args.files:
        for path, entry in sorted(found.manifest.files.items()):
            print(f"{entry.sha256}  {entry.size:>10}  {path}")
    return 0


def _wheel(args: argparse.Namespace, index: Index, name: str) -> int:
    entry = dataclasses.asdict(index.wheels[name])
    if args.json:
        print_json({"filename": name, **entry})
        return 0
    blocks: list[Block] = [Verbatim(name)]
    for key, value in entry.items():
        several = isinstance(value, (tuple, list))
        text = f"{key.replace('_', ' '):<16}{(', '.join(value) if several else value) or '-'}"
        blocks.append(text if several else Verbatim(text))  # a hash that is broken in two cannot be copied
    show_blocks(blocks)
    return 0


def _revision(hub: Hub, found: Resolved) -> None:
    print(f"revision {found.revision} (version {found.manifest.version})")
    for variant in found.manifest.variants:
        folder = Variant.parse(variant).folder(found.repo)
        files = found.manifest.under(folder)
        info = json.loads(hub.read(files[INFO_FILE]))
        print(f"  {folder}: {len(files)} files, {format_bytes(sum(entry.size for entry in files.values()))}")
        for platform, item in sorted(info["platforms"].items()):
            code = ", ".join(item["images"]) or "Python only"
            print(f"    {platform}: {code}, from {item['wheel']}")


def configure_check(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    parser.add_argument(
        "--keys",
        metavar="KEYS",
        help="public keys, or files of them: one must have signed (default: $FLASH_ATTN3_TRUSTED_KEYS)",
    )


def check(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.maintain import check as check_hub

    hub = open_hub(args)
    found = check_hub(hub, trusted_keys(args))
    for finding in () if args.json else found.findings:
        print(f"  {finding}", file=sys.stderr)
    lines = [
        f"{'ok' if found.ok else 'DAMAGED'}: generation {found.generation} of {hub.layout.root}: "
        f"{counted(found.wheels, 'wheel')}, {counted(found.revisions, 'revision')}, {counted(found.objects, 'object')} "
        f"({format_bytes(found.size)}) hashed{', signature checked' if found.signed else ''}"
    ]
    if found.orphans:
        more = counted(found.orphans, "more object")
        lines.append(f"  {more} for earlier generations, or for none: flash-attn3 hub gc --dry-run")
    report(args, {"hub": str(hub.layout.root), "ok": found.ok, **dataclasses.asdict(found)}, *lines)
    return 0 if found.ok else IntegrityError.exit_code
