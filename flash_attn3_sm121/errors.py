"""One error tree. Each class has its own exit code; only `main()` functions catch `FlashAttn3Error`.

A message says what happened, what was found against what was expected, and the next command to type.
"""

from __future__ import annotations

import importlib.machinery
import shlex
import sys

# The newest wheel of a clone, for a shell. pip and uv refuse two wheels of one project, as two profiles make them.
NEWEST_WHEEL = '"$(ls -t wheels/flash_attn3_sm121-*.whl | head -1)"'


def pip_command() -> str:
    """The command that installs packages for this Python: its pip, or uv's where it has none (`uv venv` makes such)."""
    python = shlex.quote(sys.executable)
    # Not find_spec of importlib.util: setuptools has a finder that takes distutils away where pip is looked for.
    has_pip = importlib.machinery.PathFinder.find_spec("pip") is not None
    return f"{python} -m pip" if has_pip else f"UV_PYTHON={python} uv pip"


class FlashAttn3Error(Exception):
    """Base of everything this project raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n  -> {self.hint}" if self.hint else text


class UsageError(FlashAttn3Error):
    """The command line or a configuration value makes no sense.

    argparse ends with 2 as well.
    """

    exit_code = 2


class ArchError(UsageError):
    """An architecture list names something unknown or impossible."""

    exit_code = 3


class TableError(FlashAttn3Error):
    """One of our own data tables contradicts itself."""

    exit_code = 4


class MissingPackageError(FlashAttn3Error):
    """A Python package that a command needs is not installed."""

    exit_code = 5


class SourceError(FlashAttn3Error):
    """Upstream sources could not be had, or are not what the lock says."""

    exit_code = 10


class EditError(SourceError):
    """An edit's anchor is missing or ambiguous in the sources at hand."""

    exit_code = 11


class ToolchainError(FlashAttn3Error):
    """The compiler or a library it needs is missing, too old, or not what was pinned."""

    exit_code = 12


class FetchError(FlashAttn3Error):
    """A download failed or gave other bytes than pinned."""

    exit_code = 13


class CompileError(FlashAttn3Error):
    """A compiler, linker or other tool failed.

    The message quotes command, exit code and output.
    """

    exit_code = 14


class VerifyError(FlashAttn3Error):
    """A built library or wheel does not hold what it must."""

    exit_code = 15


class AssembleError(FlashAttn3Error):
    """Artifacts do not belong together."""

    exit_code = 16


class DiskError(FlashAttn3Error):
    """There is no room left where something had to be written."""

    exit_code = 17


class SystemCallError(FlashAttn3Error):
    """The system refused to read or write something.

    The message quotes it.
    """

    exit_code = 18


class FactsError(FlashAttn3Error):
    """A library's build facts are missing, malformed or of an unknown schema."""

    exit_code = 20


class NativeLoadError(FlashAttn3Error, ImportError):
    """A family library is present but cannot be loaded.

    The cause is always attached.
    """

    exit_code = 21


class BackendError(FlashAttn3Error, RuntimeError):
    """No backend, or not the forced one, can serve a call.

    The message carries every refusal.
    """

    exit_code = 22


class CallError(FlashAttn3Error, RuntimeError, ValueError):
    """The arguments of an attention call do not fit together.

    It is a RuntimeError because upstream's checks raise that.
    """

    exit_code = 23


class BenchError(FlashAttn3Error):
    """One of our backends gave a wrong answer while it was being measured."""

    exit_code = 24


class HubError(FlashAttn3Error):
    """The hub folder cannot be read or written as asked."""

    exit_code = 30


class IntegrityError(HubError):
    """Something in the hub does not match its recorded hash or signature."""

    exit_code = 31


class OverrideError(HubError):
    """get_kernel, or flash_attn's name, cannot be served here."""

    exit_code = 32


class ServeError(HubError):
    """`hub serve` cannot listen, or its configuration cannot be used."""

    exit_code = 34
