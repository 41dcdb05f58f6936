"""Platform tags from what a library really needs: PEP 600's rule, with auditwheel's lists. Pure.

`manylinux_2_N` promises glibc 2.N or newer, and the C++ runtime of a distribution of that age. The ceilings below are a
copy of auditwheel's policy file; a test compares them where auditwheel is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ci.plan.archs import Platform
from flash_attn3_sm121.errors import VerifyError

Version = tuple[int, ...]


class Policy(NamedTuple):
    """Newest symbol versions that a tag allows."""

    glibc: Version
    glibcxx: Version
    cxxabi: Version
    gcc: Version

    @property
    def name(self) -> str:
        return f"manylinux_{self.glibc[0]}_{self.glibc[1]}"

    def tag(self, platform: Platform) -> str:
        return f"{self.name}_{platform}"


# Where auditwheel allows aarch64 and x86_64 different versions, the older one.
POLICIES: tuple[Policy, ...] = (
    Policy((2, 17), (3, 4, 19), (1, 3, 7), (4, 7, 0)),
    Policy((2, 24), (3, 4, 22), (1, 3, 10), (4, 7, 0)),
    Policy((2, 26), (3, 4, 22), (1, 3, 10), (4, 8, 0)),
    Policy((2, 27), (3, 4, 24), (1, 3, 11), (7, 0, 0)),
    Policy((2, 28), (3, 4, 24), (1, 3, 11), (7, 0, 0)),
    Policy((2, 31), (3, 4, 28), (1, 3, 12), (7, 0, 0)),
    Policy((2, 34), (3, 4, 29), (1, 3, 13), (7, 0, 0)),
    Policy((2, 35), (3, 4, 30), (1, 3, 13), (11, 0)),
    Policy((2, 36), (3, 4, 30), (1, 3, 13), (11, 0)),
    Policy((2, 38), (3, 4, 30), (1, 3, 13), (11, 0)),
    Policy((2, 39), (3, 4, 33), (1, 3, 15), (14, 0, 0)),
    Policy((2, 41), (3, 4, 33), (1, 3, 15), (14, 0, 0)),
)

# Libraries that every system of a tag has; torch's own come with the torch that the wheel depends on.
SYSTEM_LIBRARIES = frozenset(
    {"libgcc_s.so.1", "libstdc++.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libc.so.6", "libpthread.so.0"}
)
TORCH_LIBRARIES = frozenset({"libtorch.so", "libtorch_cpu.so"})


def version(text: str) -> tuple[str, Version] | None:
    """("GLIBC", (2, 34)) of GLIBC_2.34; None for names without a number (GLIBC_PRIVATE, CXXABI_TM_1)."""
    name, _, number = text.partition("_")
    if name.lower() not in Policy._fields or not number or not all(part.isdigit() for part in number.split(".")):
        return None
    return name, tuple(int(part) for part in number.split("."))


def newest(versions: Iterable[str]) -> dict[str, Version]:
    """The newest of each kind that is asked for."""
    newest_of: dict[str, Version] = {}
    for text in versions:
        parsed = version(text)
        if parsed is not None:
            name, number = parsed
            newest_of[name] = max(newest_of.get(name, number), number)
    return newest_of


def allows(policy: Policy, needs: dict[str, Version]) -> bool:
    return all(number <= getattr(policy, name.lower()) for name, number in needs.items())


def lowest(versions: Iterable[str]) -> Policy:
    """The oldest policy that allows all of these symbol versions. Raises VerifyError where none does."""
    wanted = list(versions)
    needs = newest(wanted)
    for policy in POLICIES:
        if allows(policy, needs):
            return policy
    newest_known = POLICIES[-1].name
    text = ", ".join(f"{name}_{'.'.join(map(str, number))}" for name, number in sorted(needs.items()))
    raise VerifyError(
        f"no manylinux policy up to {newest_known} allows {text}", hint="build with an older compiler or sysroot"
    )
