"""`flash-attn3 hub serve` and `hub nginx`: the tree sent by our own server, or by nginx."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import ssl
import sys
import webbrowser
from pathlib import Path
from typing import NoReturn

from flash_attn3_sm121.errors import ServeError
from flash_attn3_sm121.hub.commands.options import add_hub_option, hub_root
from flash_attn3_sm121.hub.server.config import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    TOKEN_ENV,
    ServeConfig,
    raise_descriptors,
    read_token,
)
from flash_attn3_sm121.hub.store import Hub

BACKLOG = 4096


def configure_serve(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser, json_too=False)
    parser.add_argument(
        "--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s, only this machine)"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="port to listen on (default: %(default)s; 0: any free one)"
    )
    parser.add_argument(
        "--connections",
        type=int,
        metavar="N",
        help="how many may be open at once (default: as many as the limit of open files allows)",
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument(
        "--token", metavar="T", help=f"readers must send this token (`ps` shows it to others: prefer ${TOKEN_ENV})"
    )
    access.add_argument("--token-file", type=Path, metavar="FILE", help="the same, from the first line of a file")
    parser.add_argument(
        "--insecure", action="store_true", help="no token, although other machines reach --host: all of them can read"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="serve https with this certificate chain")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key (PKCS #8), if in another file")
    parser.add_argument("--access-log", action="store_true", help="a line on stderr for each request")
    parser.add_argument("--workers", type=no_workers, help=argparse.SUPPRESS)
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def no_workers(_: str) -> NoReturn:
    raise argparse.ArgumentTypeError(
        "this option is gone: one process serves all clients now; nginx can use more (flash-attn3 hub nginx)"
    )


def to_config(args: argparse.Namespace) -> ServeConfig:
    token = read_token(args.token_file) if args.token_file is not None else args.token
    return ServeConfig(
        root=str(hub_root(args).absolute()),
        host=args.host,
        port=args.port,
        token=token or os.environ.get(TOKEN_ENV) or None,
        insecure=args.insecure,
        connections=args.connections,
        tls_cert=str(args.tls_cert) if args.tls_cert else None,
        tls_key=str(args.tls_key or args.tls_cert) if args.tls_cert or args.tls_key else None,
        access_log=args.access_log,
    )


def greeting(config: ServeConfig, port: int) -> str:
    """The lines that `serve` prints when it is up: its addresses, and what clients have to set."""
    name = socket.gethostname() if config.host in ("0.0.0.0", "::") else None
    url = config.url(port, host=name)
    scheme, _, rest = url.partition("://")
    index = f"{scheme}://{'hub:<the token>@' if config.token else ''}{rest}/simple/"
    lines = [
        f"hub {config.root}",
        f"  page      {url}/" + (f"  (here: {config.url(port)}/)" if name else ""),
        f"  kernels   export HF_ENDPOINT={url}" + ("  HF_TOKEN=<the token>" if config.token else ""),
        f"  pip       pip install --no-deps --index-url {shlex.quote(index)} flash_attn3_sm121",
    ]
    if config.token is None and config.insecure:
        lines.append("  everybody who reaches this address can read (--insecure)")
    return "\n".join([*lines, "  Ctrl-C stops it"])


def listen(config: ServeConfig) -> socket.socket:
    """The socket that clients connect to. Raises ServeError where its address is not free."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host.strip("[]"), config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return sock
    except OSError as error:
        raise ServeError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror or error}",
            hint="name another --port (0 takes any free one) or --host",
        ) from error


def tls_of(config: ServeConfig) -> ssl.SSLContext | None:
    """Certificate and key, loaded. Raises ServeError where they cannot be used."""
    if config.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"--tls-cert {config.tls_cert}: {error}", hint="a PEM file with certificate and key"
        ) from error
    return context


def serve(args: argparse.Namespace) -> int:
    config = to_config(args)
    Hub.open(Path(config.root))
    import uvloop

    from flash_attn3_sm121.hub.generation import upgrade
    from flash_attn3_sm121.hub.server import http

    upgrade(Hub.open(Path(config.root)))
    tls = tls_of(config)
    most = raise_descriptors()
    with listen(config) as sock:
        port = sock.getsockname()[1]

        def announce() -> None:
            print(greeting(config, port), file=sys.stderr, flush=True)
            print(config.url(port), flush=True)
            if args.open:
                webbrowser.open(f"{config.url(port)}/")

        uvloop.run(http.serve(config, sock, tls, config.connections or most, announce=announce))
    return 0


def configure_nginx(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: flash-attn3 hub nginx --listen 80 > /etc/nginx/conf.d/hub.conf"
    add_hub_option(parser, json_too=False)
    parser.add_argument(
        "--listen", default="127.0.0.1:8080", metavar="ADDRESS", help="nginx's listen (default: %(default)s)"
    )


def nginx(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.generation import upgrade
    from flash_attn3_sm121.hub.site.nginx import nginx_conf

    root = hub_root(args).absolute()
    upgrade(Hub.open(root))
    print(nginx_conf(root, args.listen), end="")
    return 0
