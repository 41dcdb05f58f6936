"""What `flash-attn3` and `python -m ci` share: subcommands that are imported when they are asked for, and exit codes.

The module of a subcommand `x-y` has `configure_x_y(parser)`, which adds its options, and `do_x_y(args) -> int`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import importlib.metadata
import itertools
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import (
    DiskError,
    FlashAttn3Error,
    MissingPackageError,
    SystemCallError,
    UsageError,
    pip_command,
)

HUNG_UP = 129
INTERRUPTED = 130
TERMINATED = 143
READER_GONE = 141  # what a shell reports of a program that SIGPIPE ended
# Exit codes that no error class has.
OTHER_CODES = {
    0: "Done.",
    1: "`doctor` found a fault.",
    127: "The command given to `run` does not exist; otherwise `run` ends with that command's own exit code.",
    HUNG_UP: "Its terminal was closed, or the connection to it lost (SIGHUP).",
    INTERRUPTED: "Interrupted by Ctrl-C.",
    READER_GONE: "Whoever read the output has gone, as `head` does.",
    TERMINATED: "Ended by SIGTERM.",
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """A command line: its name, and for each subcommand the module that has it and a line for `--help`."""

    name: str  # as in `usage: NAME`
    short: str  # as in `SHORT: error: ...`
    about: str
    commands: Mapping[str, tuple[str, str]]
    holds: Callable[[], Iterable[str]] = tuple  # what `--version` says below the version, a line each

    def main(self, argv: Sequence[str]) -> int:
        """Run one subcommand. The result is the exit code: every error of ours ends here, as a message on stderr."""
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # the caller closed it: what is written there is dropped
                setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        wanted = next((word for word in argv if not word.startswith("-")), "")
        try:
            with _missing_packages_named():
                args = self.parser(wanted).parse_args(argv)
                code = int(args.run(args))
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            _discard_stdout()
            return READER_GONE
        except FlashAttn3Error as error:
            return self._say(error)
        except OSError as error:
            return self._say(as_error(error))
        except RuntimeError as error:
            if "home directory" not in str(error):  # what pathlib and platformdirs say
                raise
            return self._say(UsageError("HOME is not set, and this user has no home folder", hint="export HOME=DIR"))
        except KeyboardInterrupt as stop:
            Narrator().note(f"{self.short}: interrupted")
            return int(stop.args[0]) if isinstance(stop, Terminated) else INTERRUPTED

    def _say(self, error: FlashAttn3Error) -> int:
        Narrator().note(f"{self.short}: error: {error}", style="red")
        try:
            sys.stdout.flush()
        except OSError:
            _discard_stdout()  # a full disk: what is still buffered would fail once more at exit
        return error.exit_code

    def parser(self, wanted: str | None = None) -> argparse.ArgumentParser:
        """Only the wanted subcommand is imported and configured: the others may need what is not installed here.

        None wants all of them, for a completion script.
        """
        parser = Parser(prog=self.name, description=self.about, epilog=_codes_for_help(), formatter_class=Paragraphs)
        parser.add_argument(
            "-V", "--version", action=ShowVersion, nargs=0, help="show the version and exit",
            const=lambda: (f"{self.name} {version()}", *self.holds()),
        )  # fmt: skip
        commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
        for name, (module, about) in self.commands.items():
            sub = commands.add_parser(name, help=about, description=about, formatter_class=Paragraphs)
            if wanted in (name, None):
                loaded = importlib.import_module(module)
                function = name.replace("-", "_")
                getattr(loaded, f"configure_{function}")(sub)
                sub.set_defaults(run=getattr(loaded, f"do_{function}"))
        return parser


class ShowVersion(argparse.Action):
    """Prints the lines that `const` makes, unwrapped. They are made when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print("\n".join(self.const()))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Shows the usage of the subcommand that failed, and suggests the nearest name for a misspelt one."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """argparse asks subcommands for what they know and lets the main parser complain of the rest: too late.

        For a misspelt option where a subcommand should stand, argparse would only say that the subcommand is missing.
        """
        word = next(iter(sys.argv[1:] if args is None else args), "")
        known = any(name.startswith(word) for name in self._option_string_actions)
        if self._subparsers and word.startswith("--") and not known:
            self.error(f"unrecognized arguments: {word}")
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        super().error(message + self._suggestion(message))

    def _suggestion(self, message: str) -> str:
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            word, names = choice[1], [name.strip(" '") for name in choice[2].split(",")]
        elif option := re.search(r"unrecognized arguments: --([\w-]+)", message):
            word, names = option[1], re.findall(r"--([a-z][\w-]*)", self.format_help())
        else:
            commands = next((a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)), ())
            return f", one of {', '.join(commands)}" if commands and "arguments are required" in message else ""
        close = difflib.get_close_matches(word, names, n=1)
        return f"; did you mean {'' if choice else '--'}{close[0]}?" if close else ""


class Paragraphs(argparse.HelpFormatter):
    """Fits prose to the terminal and keeps empty lines; a line that begins with a space is left as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for prose, group in itertools.groupby(text.splitlines(), lambda line: line[:1].strip() != ""):
            paragraph = list(group)
            lines += textwrap.wrap(" ".join(paragraph), width, break_on_hyphens=False) if prose else paragraph
        return "\n".join(indent + line for line in lines)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, with the exit code for it, for commands that have called `end_in_order`."""


def end_in_order() -> None:
    """Have SIGTERM and SIGHUP end this process as Ctrl-C does, by an exception: what is half-made is taken away.

    Under nohup SIGHUP is ignored, and stays so.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _terminated)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated(128 + number)


def as_error(error: OSError) -> FlashAttn3Error:
    """A refusal of the system as an error of ours, with what to do next."""
    where = error.filename if error.filename is not None else "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskError(
            f"{where}: {error.strerror}",
            hint="make room, then type the same command again; `flash-attn3 hub gc` gives back what a hub can spare",
        )
    hint = None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "name a place that you may write to (--hub DIR for the hub, FA3_CACHE=DIR for builds), or ask its owner"
    return SystemCallError(f"{where}: {error.strerror or error}", hint=hint)


@contextlib.contextmanager
def _missing_packages_named() -> Iterator[None]:
    """Turn a failed import of another project's package into an error that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "ci", "flash_attn3_sm121"):
            raise
        hint = f"{pip_command()} install {name}"
        raise MissingPackageError(f"the Python package {name} is not installed", hint=hint) from error


def version() -> str:
    """The installed version with its local part (pin, capabilities, profile); of a folder, the number and that."""
    here = Path(__file__).parent.resolve()  # the folder's: uv may link the file itself into its cache
    for distribution in importlib.metadata.distributions(name="flash_attn3_sm121"):
        if Path(str(distribution.locate_file("flash_attn3_sm121"))).resolve() == here:
            return distribution.version
    return f"{__version__} (from a folder, not installed)"


def exit_codes() -> dict[int, str]:
    """Every exit code and what it means: the first paragraph of the docstring of the error class that declares it."""
    codes, classes = dict(OTHER_CODES), [FlashAttn3Error]
    while classes:
        subclasses = classes.pop().__subclasses__()
        classes += subclasses
        for error in subclasses:
            if "exit_code" in vars(error):  # a class below one that declares it shares its meaning
                codes[error.exit_code] = (error.__doc__ or "").split("\n\n")[0]
    return dict(sorted(codes.items()))


def _codes_for_help() -> str:
    lines = ["exit codes:"]
    for code, meaning in exit_codes().items():
        lines += textwrap.wrap(meaning.replace("`", ""), 72, initial_indent=f"{code:5}  ", subsequent_indent=" " * 7)
    return "\n".join(lines)


def _discard_stdout() -> None:
    """Send what is still buffered nowhere, so that writing it does not fail again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
