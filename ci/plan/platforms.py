"""CPU platforms a wheel can be built for: one table, one class."""

from __future__ import annotations

from enum import Enum

from flash_attn3_sm121.errors import UsageError

_ALIASES = {"arm64": "aarch64", "amd64": "x86_64", "linux_aarch64": "aarch64", "linux_x86_64": "x86_64"}


class Platform(str, Enum):
    """The CPU a library is for; Linux everywhere."""

    AARCH64 = "aarch64"
    X86_64 = "x86_64"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, text: str) -> Platform:
        name = _ALIASES.get(text.lower(), text.lower())
        known = {member.value: member for member in cls}
        if name not in known:
            raise UsageError(f"unknown platform {text!r}", hint=f"allowed: {', '.join(known)}")
        return known[name]

    @property
    def tag(self) -> str:
        """The generic platform tag of wheels and build facts."""
        return f"linux_{self.value}"

    @property
    def elf_machine(self) -> str:
        """e_machine of this platform's ELF files, by its name in the ELF specification."""
        return {Platform.AARCH64: "EM_AARCH64", Platform.X86_64: "EM_X86_64"}[self]

    @property
    def loader(self) -> str:
        """The dynamic loader's soname, which a library may name among its needs."""
        return {Platform.AARCH64: "ld-linux-aarch64.so.1", Platform.X86_64: "ld-linux-x86-64.so.2"}[self]
