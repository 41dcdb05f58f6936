"""`flash-attn3 hub serve` and `hub nginx`: the tree sent by our own server, or by nginx."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import ssl
import sys
import threading
import time
import webbrowser
from pathlib import Path
from typing import Any

from flash_attn3_sm121.errors import ServeError
from flash_attn3_sm121.hub.commands.options import add_hub_option, hub_root
from flash_attn3_sm121.hub.server.config import (
    CONFIG_ENV,
    DEFAULT_HOST,
    DEFAULT_PORT,
    DEFAULT_WORKERS,
    TOKEN_ENV,
    ServeConfig,
    raise_descriptors,
    read_token,
)
from flash_attn3_sm121.hub.store import Hub

HEADER_SECONDS = 10  # for a request's headers, and for the next request on a connection that stays open
STOP_SECONDS = 5  # that downloads get to finish
BACKLOG = 4096
ACCESS_FORMAT = '%(addr)s %(time)s "%(method)s %(path)s" %(status)d %(dt_ms).3fms'


def configure_serve(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser, json_too=False)
    parser.add_argument(
        "--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s, only this machine)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="default: %(default)s; 0 takes any free port")
    parser.add_argument(
        "--workers", type=int, default=DEFAULT_WORKERS, metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--connections",
        type=int,
        metavar="N",
        help="connections that a worker holds at once (default: as many as the limit of open files allows)",
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument(
        "--token", metavar="T", help=f"readers must carry it (others can see it in `ps`: prefer ${TOKEN_ENV})"
    )
    access.add_argument("--token-file", type=Path, metavar="FILE", help="... taken from a file's first line")
    parser.add_argument(
        "--insecure", action="store_true", help="let everybody who reaches --host read, without a token"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="serve https with this certificate chain")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key (PKCS #8), if in another file")
    parser.add_argument("--access-log", action="store_true", help="a line on stderr for each request")
    parser.add_argument("--metrics", type=int, metavar="PORT", help="Prometheus metrics, on this port of the loopback")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def to_config(args: argparse.Namespace) -> ServeConfig:
    token = read_token(args.token_file) if args.token_file is not None else args.token
    return ServeConfig(
        root=str(hub_root(args).absolute()),
        host=args.host,
        port=args.port,
        token=token or os.environ.get(TOKEN_ENV) or None,
        insecure=args.insecure,
        workers=args.workers,
        connections=args.connections,
        tls_cert=str(args.tls_cert) if args.tls_cert else None,
        tls_key=str(args.tls_key or args.tls_cert) if args.tls_cert or args.tls_key else None,
        access_log=args.access_log,
        metrics_port=args.metrics,
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


def free_port(config: ServeConfig) -> int:
    """The port to listen on. Raises ServeError where it is not free."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host.strip("[]"), config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ServeError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror or error}",
            hint="name another --port (0 takes any free one) or --host",
        ) from error


def check_tls(config: ServeConfig) -> None:
    """Load certificate and key before a worker does. Raises ServeError where they cannot be used."""
    if config.tls_cert is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"--tls-cert {config.tls_cert}: {error}", hint="a PEM file with certificate and key"
        ) from error


def _announce(config: ServeConfig, port: int, *, browser: bool) -> None:
    """Wait until the server accepts connections, then print its address."""
    host = config.url(port).partition("://")[2].rpartition(":")[0].strip("[]")
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            break
        except OSError:
            time.sleep(0.05)
    print(greeting(config, port), file=sys.stderr, flush=True)
    print(config.url(port), flush=True)
    if browser:
        webbrowser.open(f"{config.url(port)}/")


def serve(args: argparse.Namespace) -> int:
    config = to_config(args)
    Hub.open(Path(config.root))
    from granian.constants import HTTPModes, Interfaces, RuntimeModes, SSLProtocols
    from granian.http import HTTP1Settings
    from granian.server import Server

    from flash_attn3_sm121.hub.generation import upgrade

    upgrade(Hub.open(Path(config.root)))
    check_tls(config)
    port = free_port(config)
    most = config.connections or raise_descriptors()
    os.environ[CONFIG_ENV] = config.to_environ()
    stream = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "access"}
    server: Any = Server(
        "flash_attn3_sm121.hub.server.app:load",
        factory=True,
        address=config.host.strip("[]"),
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        runtime_mode=RuntimeModes.st,
        workers=config.workers,
        backlog=BACKLOG,
        backpressure=most,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_SECONDS * 1000),
        log_dictconfig={"handlers": {"console": stream, "access": stream}},
        log_access=config.access_log,
        log_access_format=ACCESS_FORMAT,
        ssl_cert=Path(config.tls_cert) if config.tls_cert else None,
        ssl_key=Path(config.tls_key) if config.tls_key else None,
        ssl_protocol_min=SSLProtocols.tls12,
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=STOP_SECONDS,
        metrics_enabled=config.metrics_port is not None,
        metrics_port=config.metrics_port or 9090,
    )
    threading.Thread(target=_announce, args=(config, port), kwargs={"browser": args.open}, daemon=True).start()
    server.serve()
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
