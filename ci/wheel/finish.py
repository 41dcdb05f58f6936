"""The last steps of a build: link shards, read and judge the libraries, make the wheel, judge it, put it in place.

Each is done once. A wheel that fails is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.build import family
from ci.build.artifact import Artifact, Part
from ci.build.family import Builder
from ci.build.workdir import WorkFolder
from ci.cache.folders import file_sha256
from ci.plan.archs import Platform
from ci.verify import policy, report
from ci.verify.checks import Check, passed
from ci.verify.executed import executed
from ci.verify.libraryrules import library_checks
from ci.verify.reading import Disassembler, LibraryReading, read_wheel_bytes, remembered
from ci.verify.wheelrules import wheel_checks
from ci.wheel.assemble import by_family, check_together, joined
from ci.wheel.metadata import provenance
from ci.wheel.wheel import WheelName, license_files, wheel_bytes, wheel_files
from flash_attn3_sm121.errors import VerifyError
from flash_attn3_sm121.files import put_file
from flash_attn3_sm121.native.buildfacts import BuildFacts


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A wheel that passed."""

    path: Path
    sha256: str
    size: int
    proxy: bool
    kernels: int
    checks: int
    proof: str  # what was executed in software, in a line


@dataclass(frozen=True, kw_only=True)
class Library:
    """A family library on its way into a wheel."""

    path: Path
    reading: LibraryReading
    facts: BuildFacts
    artifact: Artifact


def make_wheel(
    parts: Sequence[Part],
    *,
    builder: Builder,
    work: WorkFolder,
    schemas: Mapping[str, str],
    output: Path,
) -> Finished:
    """Parts to a checked wheel in `output`.

    Args:
        parts: finished libraries, or all shards of them; of one making.
        schemas: the op schemas that upstream's source declares.

    Raises:
        AssembleError: the parts do not belong together.
        VerifyError: the wheel does not pass; nothing is left of it then.
    """
    identity = check_together(parts)
    libraries = [_library(joined(group), builder, work) for group in by_family(parts).values()]
    checks = [check for item in libraries for check in library_checks(item.reading, item.facts, schemas=schemas)]
    name, files = _contents(libraries, checks, builder=builder, schemas=schemas)
    data = wheel_bytes(name, files)
    reading = read_wheel_bytes(data, name=name.file, libraries={item.reading.name: item.reading for item in libraries})
    checks = list(wheel_checks(reading, judged=checks))
    if not passed(checks):
        raise rejected(name.file, checks)
    return Finished(
        path=put_file(output / name.file, data),
        sha256=reading.sha256,
        size=reading.size,
        proxy=bool(identity.proxy),
        kernels=sum(len(library.kernels) for library in reading.libraries),
        checks=len(checks),
        proof=report.proof_line(reading.executed),
    )


def _library(part: Part, builder: Builder, work: WorkFolder) -> Library:
    """A family's library, linked where the part holds objects, read, with its facts."""
    assert part.plan is not None
    artifact, settings = part.artifact, builder.settings
    (path,) = (
        part.paths.values()
        if artifact.kind == "library"
        else (
            builder.link(part.plan, [(name.removesuffix(".o"), file) for name, file in part.paths.items()], work=work),
        )
    )
    sha256 = artifact.files.get(path.name) or file_sha256(path)
    toolchain = builder.inputs.toolchain
    tool = Disassembler.of(toolchain, settings.narrate)
    reading = remembered(path, sha256=sha256, cache=settings.cache, tool=tool, fingerprint=toolchain.fingerprint)
    tag = Platform.parse(artifact.identity.platform).tag
    facts = family.facts_of(part.plan, identity=artifact.identity, sha256=sha256, platform_tag=tag)
    return Library(path=path, reading=reading, facts=facts, artifact=artifact)


def _contents(
    libraries: Sequence[Library], checks: Sequence[Check], *, builder: Builder, schemas: Mapping[str, str]
) -> tuple[WheelName, dict[str, bytes]]:
    """The name of the wheel of these libraries, and all its files but RECORD."""
    inputs, identity = builder.inputs, libraries[0].artifact.identity
    verdict = report.document(
        [item.reading for item in libraries], checks, proxy=any(item.facts.proxy for item in libraries)
    )
    story = provenance(
        [item.artifact for item in libraries],
        lock=inputs.lock_document,
        edits=inputs.edited.edits,
        libraries={item.reading.name: item.reading.sha256 for item in libraries},
        schemas=schemas,
    )
    inside: dict[str, bytes] = {
        "verify.json": report.to_json(verdict).encode(),
        "provenance.json": report.to_json(story).encode(),
    }
    for item in libraries:
        if (done := executed(builder.settings.cache, item.artifact.reports, item.artifact.kernels)) is not None:
            inside["executed.json"] = report.to_json(done).encode()
        inside[item.reading.name] = item.path.read_bytes()
        inside[f"{item.facts.family}.json"] = item.facts.to_json().encode()
    versions = [version for item in libraries for _, version in item.reading.elf.versions]
    targets = [target for item in libraries for target in item.artifact.targets]
    name = WheelName.native(
        pin=identity.pin,
        targets=sorted(targets, key=lambda text: float(text.split("+")[0].rstrip("af"))),
        profile=identity.profile,
        proxy=bool(identity.proxy),
        platform_tag=policy.lowest(versions).tag(Platform.parse(identity.platform)),
    )
    return name, wheel_files(name, libraries=inside, licenses=license_files(inputs.tree.licenses))


def rejected(name: str, checks: Sequence[Check]) -> VerifyError:
    """The error for a wheel that does not pass: every failed check, and what to look at."""
    failed = [check for check in checks if not check.ok]
    lines = "\n".join(check.line() for check in failed)
    return VerifyError(
        f"{name} fails {len(failed)} of {len(checks)} checks; it is neither kept nor published:\n{lines}",
        hint="python -m ci build leaves the libraries as artifacts to look into",
    )
