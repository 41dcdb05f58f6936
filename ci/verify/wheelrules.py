"""The rules for a wheel as a whole. Pure: from a reading to checks."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence

from ci.plan.archs import Platform
from ci.verify import policy
from ci.verify.checks import Check, about, nothing, same
from ci.verify.libraryrules import library_checks
from ci.verify.reading import LIB, WheelReading
from flash_attn3_sm121.errors import VerifyError

LICENSES = ("LICENSE", "LICENSE.cutlass", "LICENSE.flash-attention")
PACKAGE = "flash_attn3_sm121"
MAX_SIZE = 400_000_000
_NAME = re.compile(r"(?P<name>\w+)-(?P<version>[^-]+)-(?P<python>\w+)-(?P<abi>\w+)-(?P<platform>[\w.]+)\.whl")


def wheel_checks(reading: WheelReading, *, judged: Sequence[Check] | None = None) -> tuple[Check, ...]:
    """All rules: each library's, then the wheel's own.

    Args:
        judged: what `library_checks` said of its libraries, where that was asked before.
    """
    described = {facts.library: facts for facts in reading.facts}
    checks = list(judged or ())
    for library in reading.libraries:
        if library.name not in described:
            checks += about(library.name, [same("has build facts", found=[], expected=[library.name])])
        elif judged is None:
            checks += library_checks(library, described[library.name], schemas=_declared(reading))
    names = [library.name for library in reading.libraries]
    each = same("a library for each facts file", found=names, expected=described)
    own = (each, *_record(reading), *_layout(reading), *_tags(reading), *_agreement(reading))
    return (*checks, *about("wheel", own))


def _declared(reading: WheelReading) -> Mapping[str, str]:
    """The op schemas of upstream's source, as the wheel's provenance has them."""
    declared = reading.provenance.get("op_schemas")
    return declared if isinstance(declared, dict) else {}


def _record(reading: WheelReading) -> Iterable[Check]:
    """RECORD names every file with its hash (and itself without one)."""
    bad = []
    for name, digest in reading.files.items():
        expected = "sha256=" + base64.urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()
        said = reading.record.get(name)
        if said is None:
            bad.append(f"{name} is not in RECORD")
        elif said != expected and not name.endswith(".dist-info/RECORD"):
            bad.append(f"{name}: RECORD says {said}, found {expected}")
    bad += [f"{name} is only in RECORD" for name in reading.record if name not in reading.files]
    yield nothing("RECORD", bad=bad, good=f"{len(reading.files)} files", expected="every file with its sha256")


def _layout(reading: WheelReading) -> Iterable[Check]:
    stem = "-".join(reading.name.split("-")[:2])
    needed = [
        f"{PACKAGE}/__init__.py",
        f"{PACKAGE}/_dropin/flash_attn_interface.py",
        f"{PACKAGE}.pth",
        f"{LIB}provenance.json",
        f"{LIB}verify.json",
        *(f"{stem}.dist-info/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt")),
        *(f"{stem}.dist-info/licenses/{name}" for name in LICENSES),
    ]
    missing = [name for name in needed if name not in reading.files]
    yield nothing("layout", bad=missing, good=f"{len(needed)} of {len(needed)} files", expected="none missing")
    tops = {name.split("/")[0] for name in reading.files}
    yield same("top level", found=tops, expected={PACKAGE, f"{PACKAGE}.pth", f"{stem}.dist-info"})
    yield Check(
        rule="size",
        ok=reading.size <= MAX_SIZE,
        found=f"{reading.size} bytes",
        expected=f"at most {MAX_SIZE} bytes",
    )


def _tags(reading: WheelReading) -> Iterable[Check]:
    """The platform tag is the lowest that the symbols allow; no Python ABI is used, so none is named."""
    match = _NAME.fullmatch(reading.name)
    if match is None:
        yield same("file name", found=[reading.name], expected=["name-version-python-abi-platform.whl"])
        return
    yield same("Python tag", found=[f"{match['python']}-{match['abi']}"], expected=["py3-none"])
    python = [
        s.name for library in reading.libraries for s in library.elf.undefined if s.name.startswith(("Py", "_Py"))
    ]
    yield nothing(
        "no Python ABI (abi3 has nothing to audit)", bad=python, good="none", expected="no symbol of Python's"
    )
    yield same("platform tag", found=[match["platform"]], expected=[platform_tag(reading)])
    line = f"Tag: {match['python']}-{match['abi']}-{match['platform']}"
    yield nothing(
        "WHEEL names the same tag",
        bad=[] if line in reading.wheel_metadata.splitlines() else [reading.wheel_metadata],
        good=line,
        expected=line,
    )


def platform_tag(reading: WheelReading) -> str:
    """What the platform tag has to be, from the libraries' needs."""
    platforms = {facts.platform for facts in reading.facts}
    if len(platforms) != 1:
        return f"one platform, not {sorted(platforms)}"
    needs = [version for library in reading.libraries for _, version in library.elf.versions]
    try:
        return policy.lowest(needs).tag(Platform.parse(platforms.pop()))
    except VerifyError as error:
        return str(error)


def _agreement(reading: WheelReading) -> Iterable[Check]:
    """Provenance and build facts tell the same story."""
    said = reading.provenance.get("libraries")
    libraries = said if isinstance(said, dict) else {}
    yield same(
        "provenance names these libraries",
        found=(f"{name}:{value}" for name, value in libraries.items()),
        expected=(f"{library.name}:{library.sha256}" for library in reading.libraries),
    )
    pins = {facts.upstream for facts in reading.facts}
    identity = reading.provenance.get("identity")
    pin = identity.get("pin") if isinstance(identity, dict) else None
    yield same("facts and provenance name the same pin", found=pins, expected=[str(pin)])
