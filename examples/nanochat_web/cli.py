"""The command line: looks everything over first, says what it found, then serves."""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flash_attn3_sm121.errors import FlashAttn3Error, ServeError, UsageError

from .catalog import Catalog
from .checkout import as_typed, open_checkout
from .guard import LOOPBACK, Access, Guard
from .pool import Limits
from .runs import Store, default_state

TOKEN_ENV = "NANOCHAT_WEB_TOKEN"
ABOUT = """A chat page for the models you trained with nanochat, on your own machine.

It starts your unmodified nanochat checkout, in the checkout's own Python, under `flash-attn3 run`: where nanochat
asks the kernels library for FlashAttention-3, it gets flash_attn3_sm121, which runs on GB10 and on every other device.
"""
EPILOG = """examples:
  python examples/nanochat_web/serve.py --nanochat ~/nanochat
  python examples/nanochat_web/serve.py --nanochat ~/nanochat --python ~/venvs/nano/bin/python --device cpu
  python examples/nanochat_web/serve.py --nanochat ~/nanochat --max-models 1 --slots 2      # a small GPU
  NANOCHAT_BASE_DIR=/srv/models python examples/nanochat_web/serve.py --nanochat ~/nanochat

Only this machine is served unless you say otherwise. To let a class in, put nginx before it (README.md beside this
file shows how) and add --allow-host school.example; or listen to the network yourself, with an access word:
  NANOCHAT_WEB_TOKEN=... python examples/nanochat_web/serve.py --nanochat ~/nanochat --host 0.0.0.0
"""


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, found {text}")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, found {text}")
    return value


def parser() -> argparse.ArgumentParser:
    limits = Limits()
    made = argparse.ArgumentParser(
        prog="serve.py", description=ABOUT, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = made.add_argument_group("what is served")
    what.add_argument("--nanochat", type=Path, required=True, metavar="DIR", help="your nanochat checkout")
    what.add_argument(
        "--python", type=Path, metavar="FILE", help="the Python that runs it (default: DIR/.venv/bin/python)"
    )
    what.add_argument("--device", choices=("cuda", "cpu", "mps"), help="default: as nanochat finds by itself")
    what.add_argument(
        "--state", type=Path, metavar="DIR", help=f"where evaluation results are kept (default: {default_state()})"
    )
    who = made.add_argument_group("who is served")
    who.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    who.add_argument("--port", type=port, default=8000, help="default: %(default)s; 0 takes any free port")
    who.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that a proxy may pass on as Host"
    )
    who.add_argument(
        "--token", metavar="WORD", help=f"everybody must know it (others see it in `ps`: prefer ${TOKEN_ENV})"
    )
    load = made.add_argument_group("how much the machine is asked to bear")
    load.add_argument(
        "--max-models",
        type=positive,
        default=limits.models,
        metavar="N",
        help="models in memory (default: %(default)s)",
    )
    load.add_argument(
        "--slots", type=positive, default=limits.slots, metavar="N", help="chats at once a model (default: %(default)s)"
    )
    load.add_argument(
        "--queue", type=int, default=limits.queue, metavar="N", help="messages that may wait (default: %(default)s)"
    )
    load.add_argument(
        "--idle", type=seconds, default=limits.idle, metavar="S", help="unload a model unused for so long (%(default)s)"
    )
    load.add_argument(
        "--silence",
        type=seconds,
        default=limits.silence,
        metavar="S",
        help="end a model that says nothing (%(default)s)",
    )
    load.add_argument(
        "--loading", type=seconds, default=limits.loading, metavar="S", help="... or does not get ready (%(default)s)"
    )
    load.add_argument(
        "--decode",
        choices=("batch", "one-by-one"),
        default=limits.decode,
        help="several chats of a model as one batch, or in turn, to compare (default: %(default)s)",
    )
    return made


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def access(args: argparse.Namespace) -> Access:
    token = args.token or os.environ.get(TOKEN_ENV) or None
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the access word must be of printable ASCII characters without spaces")
    names = {name.lower() for name in args.allow_host}
    if is_loopback(args.host):
        names |= {*LOOPBACK, args.host.lower()}
    return Access(hosts=frozenset(names) or None, token=token)


def listening(host: str, port: int) -> socket.socket:
    """A socket of our own, so that a port that is taken is said before anything else happens."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        hint = (
            "--port 0 takes any free one"
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else "--host takes an address of this machine: 127.0.0.1, or one that `ip address` lists"
        )
        raise ServeError(f"cannot listen on {host} port {port}: {error}", hint=hint) from error
    return sock


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def introduce(catalog: Catalog) -> None:
    """What was found, or where it was looked for."""
    checkout, found = catalog.checkout, catalog.checkpoints()
    usable = [checkpoint for checkpoint in found if checkpoint.problem is None]
    say(f"nanochat    {checkout.root} ({checkout.facts})")
    if not checkout.facts.kernels:
        say("            the kernels package is not there; a stand-in answers get_kernel for FlashAttention-3 only")
    say(f"models      {len(usable)} in {checkout.base}")
    for checkpoint in found:
        if checkpoint.problem is not None:
            say(f"            cannot be loaded: {checkpoint.key}: {checkpoint.problem}")
    if not found:
        say("            looked in: " + ", ".join(str(folder) for folder in checkout.looked_at()))
        say("            train one (nanochat's README), or point NANOCHAT_BASE_DIR to where yours are;")
        say("            the page finds new ones by itself, there is no need to start it again")
    if usable:
        say(f"command     {as_typed(checkout.worker_command(usable[0], None))}")


def serve(args: argparse.Namespace) -> int:
    rule = access(args)
    catalog = Catalog(open_checkout(args.nanochat, args.python))
    try:
        import uvicorn

        from . import api
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette", "pydantic"):
            raise
        raise UsageError(
            f"{error.name} is not installed in {sys.executable}",
            hint=f"{sys.executable} -m pip install -r {Path(__file__).with_name('requirements.txt')}",
        ) from error

    store = Store((args.state or default_state()).expanduser().absolute())
    limits = Limits(
        models=args.max_models,
        slots=args.slots,
        queue=args.queue,
        idle=args.idle,
        silence=args.silence,
        loading=args.loading,
        decode=args.decode,
    )
    with listening(args.host, args.port) as sock, store.held():
        introduce(catalog)
        app = api.build(catalog, limits, store, device=args.device)
        for text in app.state.broken:
            say(f"results     left out, cannot be read: {text}")
        say(f"results     {store.folder}")
        if not is_loopback(args.host):
            who = "everybody who knows the access word" if rule.token else "EVERYBODY who can reach this machine"
            say(f"warning     {args.host} is no loopback address: {who} can chat and run evaluations,")
            say("            over plain http; HumanEval runs code that a model wrote")
        bound = sock.getsockname()
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(bound[0], bound[0])
        name = f"[{shown}]" if ":" in shown else shown
        print(f"http://{name}:{bound[1]}/" + (f"#token={quote(rule.token, safe='')}" if rule.token else ""), flush=True)
        config = uvicorn.Config(
            Guard(app, rule), log_level="warning", lifespan="on", timeout_graceful_shutdown=5, server_header=False
        )

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[Any] | None = None) -> None:
                await app.state.pool.close()  # or open streams would hold it up
                await super().shutdown(sockets)

        asyncio.run(Server(config).serve([sock]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return serve(parser().parse_args(argv))
    except FlashAttn3Error as error:
        print(f"serve.py: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
