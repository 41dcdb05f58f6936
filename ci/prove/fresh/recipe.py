"""What the fresh machine is: the root's recipe, and the two commands as README.md gives them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.errors import UsageError

# What README.md asks for. Everything else in the root is what Debian puts there by itself.
PACKAGES = ("python3", "python3-venv", "g++", "git", "make", "ca-certificates")
LAYOUT = 1  # raise it when what is made from a recipe changes in kind
DEFAULT_SUITE = "bookworm"  # where the running system is no Debian

HEADING = "## The two commands"
FIRST, SECOND = "make wheel", "make test"

USER, UID = "newcomer", 1000
HOME = f"/home/{USER}"
CLONE = f"{HOME}/flash_attn3_sm121"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a bare root depends on."""

    suite: str
    machine: str  # a root of another CPU is another root
    mirror: str | None = None

    @property
    def key(self) -> str:
        text = f"{LAYOUT}|{self.suite}|{self.machine}|{self.mirror}|{PACKAGES}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def debootstrap(self, root: Path) -> list[str]:
        """The command that makes the root."""
        words = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", self.suite, str(root)]
        return [*words, self.mirror] if self.mirror else words


def running_suite(os_release: str) -> str:
    """The suite of the running Debian, from the text of /etc/os-release."""
    facts: dict[str, str] = {}
    for line in os_release.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            facts[name.strip()] = value.strip().strip('"')
    if facts.get("ID") == "debian":
        return facts.get("VERSION_CODENAME", DEFAULT_SUITE)
    return DEFAULT_SUITE


def two_commands(readme: str) -> tuple[str, str]:
    """The two command lines under README's heading, comments off; refuses a README that says anything else."""
    _, found, rest = readme.partition(f"\n{HEADING}\n")
    block = re.match(r"\s*```sh\n(.*?)```", rest, re.DOTALL) if found else None
    if block is None:
        raise UsageError(f"README.md: expected a block of shell commands under {HEADING!r}, found none")
    lines = [line.partition(" #")[0].strip() for line in block[1].splitlines()]
    commands = [line for line in lines if line and not line.startswith("#")]
    if [command.split()[:2] for command in commands] != [FIRST.split(), SECOND.split()]:
        raise UsageError(f"README.md: expected {FIRST!r} and {SECOND!r} under {HEADING!r}, found {commands}")
    return commands[0], commands[1]


def environment(carried: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """What the new user's shell knows: a login's few variables, what was carried in, and a command's own."""
    login = {
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "SHELL": "/bin/bash",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }
    return {**login, **carried, **extra}
