"""`flash-attn3 hub env`, `seed`, `export` and `pull`: ways from hub to hub and to clients, without a server of ours."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path

from flash_attn3_sm121.console import format_bytes
from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.checkout import checkout, resolve
from flash_attn3_sm121.hub.commands.options import add_hub_option, counted, hub_root, open_hub, report, trusted_keys
from flash_attn3_sm121.hub.trust import trusted

ENV_COVERS = (
    "kernels 0.13 to 0.16: get_kernel, bare or with arguments (not has_kernel)",
    "kernels 0.17 and newer: get_kernel and has_kernel, with version= or revision= only",
    "kernels 0.9 to 0.12: not at all; use `flash-attn3 run`, which covers every version",
)


def configure_env(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'Use it as: eval "$(flash-attn3 hub env)"'
    parser.add_argument("repos", nargs="*", metavar="ORG/NAME", help="default: every repository of the hub")
    add_hub_option(parser)
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="where the kernels are written (default: the user's cache)"
    )


def env(args: argparse.Namespace) -> int:
    hub = open_hub(args)
    index = trusted(hub).index
    repos = args.repos or sorted(index.repos)
    entries = [item for item in os.environ.get("LOCAL_KERNELS", "").split(":") if item.partition("=")[0] not in repos]
    for name in repos:
        folder = checkout(hub, resolve(hub, index, name), under=args.dir.absolute() if args.dir else None)
        if ":" in str(folder):
            raise HubError(f"LOCAL_KERNELS can't name {folder}: it separates entries with colons", hint="use --dir")
        entries.append(f"{name}={folder}")
    value = ":".join(filter(None, entries))
    if not args.json:
        print("\n".join(f"# {text}" for text in ENV_COVERS), file=sys.stderr)
    shown = {"LOCAL_KERNELS": value, "covers": list(ENV_COVERS)}
    return report(args, shown, f"export LOCAL_KERNELS={shlex.quote(value)}")


def configure_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repos", nargs="*", metavar="ORG/NAME", help="default: every repository of the hub")
    add_hub_option(parser)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="the cache (default: $HF_HUB_CACHE, $HF_HOME/hub or the user's)"
    )


def seed(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.seed import COVERS, default_cache
    from flash_attn3_sm121.hub.seed import seed as seed_cache

    hub = open_hub(args)
    index = trusted(hub).index
    cache = args.cache if args.cache is not None else default_cache()
    folders = seed_cache(hub, index, args.repos or sorted(index.repos), cache)
    value = {"cache": str(cache), "folders": [str(path) for path in folders], "covers": list(COVERS)}
    return report(
        args, value,
        f"seeded {cache}", *(f"  {path.name}" for path in folders),
        "set HF_HUB_OFFLINE=1 for the client; this covers", *(f"  {text}" for text in COVERS),
    )  # fmt: skip


def configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="DIR", help="a new or empty folder, or an earlier export")
    add_hub_option(parser)
    parser.add_argument(
        "--listen",
        default="127.0.0.1:8080",
        metavar="ADDRESS",
        help="where nginx listens, for nginx.conf (default: %(default)s)",
    )


def export(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.export import export as export_hub

    done = export_hub(open_hub(args), args.target, listen=args.listen)
    return report(
        args, dataclasses.asdict(done),
        f"exported to {done.target}: {counted(done.files, 'file')}, {format_bytes(done.size)} "
        "(files of equal content lie there once)",
        f"  generation {done.generation}: {counted(done.wheels, 'wheel')}; "
        f"repositories: {', '.join(done.repos) or 'none'}",
        f"  nginx: include {Path(done.target).absolute() / 'nginx.conf'} inside http {{ }}",
    )  # fmt: skip


def configure_pull(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Only signed hubs can be pulled. FLASH_ATTN3_HUB_TOKEN is the token for one that wants it."
    parser.add_argument("url", metavar="URL", help="the address of `hub serve`, or of nginx over a hub")
    add_hub_option(parser)
    parser.add_argument(
        "--keys", metavar="KEYS", help="public keys to trust, or files of them (default: $FLASH_ATTN3_TRUSTED_KEYS)"
    )


def pull(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.pull import Remote
    from flash_attn3_sm121.hub.pull import pull as pull_hub

    remote = Remote(url=args.url, token=os.environ.get("FLASH_ATTN3_HUB_TOKEN"))
    done = pull_hub(hub_root(args), remote, trusted_keys(args))
    what = f"pulled {counted(done.files, 'file')} ({format_bytes(done.size)})" if done.changed else "nothing new"
    text = f"{what}: generation {done.generation}, signed by {done.key}; next: flash-attn3 hub serve"
    return report(args, dataclasses.asdict(done), text)
