"""`flash-attn3 hub serve`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import webbrowser
from pathlib import Path

from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.layout import default_root
from flash_attn3_sm121.hub.server.config import DEFAULT_HOST, DEFAULT_PORT, TOKEN_ENV, ServeConfig

ABOUT = "serve the hub as a Hugging Face endpoint for `kernels`, as a pip index, and as a page (read-only)"


def configure_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hub", type=Path, metavar="DIR", help="the hub folder (default: $FLASH_ATTN3_HUB or your own)"
    )
    parser.add_argument(
        "--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s, only this machine)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="default: %(default)s; 0 takes any free port")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    access = parser.add_mutually_exclusive_group()
    access.add_argument(
        "--token", metavar="T", help=f"readers must carry it (others can see it in `ps`: prefer ${TOKEN_ENV})"
    )
    access.add_argument("--token-file", type=Path, metavar="FILE", help="... taken from a file's first line")
    parser.add_argument(
        "--insecure", action="store_true", help="let everybody who reaches --host read, without a token"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="serve https with this certificate chain")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key, where it is not in the same file")
    parser.add_argument("--quiet", action="store_true", help="no access log")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def _token(args: argparse.Namespace) -> str | None:
    if args.token is not None:
        return str(args.token)
    if args.token_file is not None:
        try:
            lines = args.token_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {args.token_file}: {error}") from error
        if not lines:
            raise UsageError(f"--token-file {args.token_file}: the file is empty")
        return str(lines[0].strip())
    return os.environ.get(TOKEN_ENV) or None


def to_config(args: argparse.Namespace) -> ServeConfig:
    return ServeConfig(
        root=args.hub or default_root(),
        host=args.host,
        port=args.port,
        token=_token(args),
        insecure=args.insecure,
        workers=args.workers,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        access_log=not args.quiet,
    )


def greeting(config: ServeConfig, url: str) -> str:
    """What to type elsewhere, for stderr."""
    lines = [
        f"hub {config.root}",
        f"  page      {url}/",
        f"  kernels   export HF_ENDPOINT={url}" + ("  HF_TOKEN=<the token>" if config.token else ""),
        f"  pip       pip install --no-deps --index-url {shlex.quote(_pip_url(config, url))} flash_attn3_sm121",
    ]
    if config.token is None and config.insecure:
        lines.append("  everybody who reaches this address can read (--insecure)")
    return "\n".join([*lines, "  Ctrl-C stops it"])


def _pip_url(config: ServeConfig, url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{'hub:<the token>@' if config.token else ''}{rest}/simple/"


def serve(args: argparse.Namespace) -> int:
    config = to_config(args)
    from flash_attn3_sm121.hub.server import accesslog
    from flash_attn3_sm121.hub.server import serve as server

    accesslog.configure(access=config.access_log)
    tls = server.check(config)
    with server.listen(config) as sock:
        url = config.url(sock.getsockname()[1])
        print(greeting(config, url), file=sys.stderr, flush=True)
        print(url, flush=True)
        if args.open:
            webbrowser.open(f"{url}/")
        return server.serve(config, sock, tls)
