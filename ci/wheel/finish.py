"""The last steps of a build: join shards, read libraries, assemble, judge, write.

A wheel that fails is not left where it could be mistaken for a good one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.build.artifact import file_sha256
from ci.build.children import Children
from ci.build.family import Builder
from ci.build.workdir import workdir
from ci.verify.checks import Check, passed
from ci.verify.gather import Disassembler, WheelReading, read_wheel
from ci.verify.readings import remembered
from ci.verify.wheelrules import judge_wheel
from ci.wheel import assemble, wheel
from ci.wheel.assemble import Assembly, Library, Part
from flash_attn3_sm121.errors import VerifyError


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A wheel that passed."""

    path: Path
    sha256: str
    size: int
    proxy: bool
    verdict: Mapping[str, Any]


def link_shards(groups: Mapping[str, Sequence[Part]], *, builder: Builder, folder: Path) -> dict[str, Path]:
    """Family -> library file; sharded families are linked here, whole ones are taken from their artifact."""
    found: dict[str, Path] = {}
    inputs = builder.inputs
    for name, group in groups.items():
        first = group[0]
        if first.artifact.kind == "library":
            found[name] = first.folder / next(iter(first.artifact.files))
            continue
        planned, objects = assemble.shard_objects(group)
        with workdir(builder.cache, sources=inputs.edited.folder, torch=inputs.torch_headers) as work:
            made = builder.linker(work, Children()).link(planned, objects)
            found[name] = made.replace(folder / made.name)
    return found


def make_wheel(
    folders: Sequence[Path], *, builder: Builder, tool: Disassembler, schemas: Mapping[str, str], output: Path
) -> Finished:
    """Artifacts to a checked wheel in `output`. Raises VerifyError, and leaves nothing, where it does not pass."""
    inputs, narrate = builder.inputs, builder.narrate
    parts = assemble.read_parts(folders)
    identity = assemble.check_together(parts)
    groups = assemble.by_family(parts)
    with tempfile.TemporaryDirectory(prefix="fa3-assemble-") as scratch:
        libraries = []
        for name, path in link_shards(groups, builder=builder, folder=Path(scratch)).items():
            reading = remembered(
                path,
                cache=builder.cache,
                tool=tool,
                fingerprint=inputs.toolchain.fingerprint,
                narrate=narrate,
            )
            libraries.append(assemble.library(assemble.joined(groups[name]), path, reading))
        made = assemble.assemble(
            libraries,
            lock=inputs.lock_document,
            edits=inputs.edited.edits,
            schemas=schemas,
            licenses=inputs.tree.licenses,
        )
        return _check_and_place(made, libraries, schemas=schemas, output=output, proxy=bool(identity.proxy))


def _check_and_place(
    made: Assembly, libraries: Sequence[Library], *, schemas: Mapping[str, str], output: Path, proxy: bool
) -> Finished:
    """Judge the finished wheel before it gets its name in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=output) as hidden:
        path = wheel.write(Path(hidden), made.name, made.files)
        reading = read_wheel(path, libraries={item.reading.name: item.reading for item in libraries})
        checks = judge_wheel(reading, schemas=schemas)
        if not passed(checks):
            raise rejected(reading, checks)
        sha256 = file_sha256(path)
        final = path.replace(output / path.name)
    return Finished(path=final, sha256=sha256, size=reading.size, proxy=proxy, verdict=made.verdict)


def rejected(reading: WheelReading, checks: Sequence[Check]) -> VerifyError:
    """The error for a wheel that does not pass: every failed check, and what to look at."""
    failed = [check for check in checks if not check.ok]
    lines = "\n".join(check.line() for check in failed)
    return VerifyError(
        f"{reading.name} fails {len(failed)} of {len(checks)} checks; it is neither kept nor published:\n{lines}",
        hint="python -m ci build leaves the libraries as artifacts to look into",
    )
