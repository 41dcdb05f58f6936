"""What a wheel holds, judged before anything of it gets into the hub. Reads, never unpacks."""

from __future__ import annotations

import base64
import csv
import email.parser
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.layout import PACKAGE, check_file_path, check_wheel_name
from flash_attn3_sm121.native.buildfacts import BuildFacts

LIB = f"{PACKAGE}/lib/"
NOT_FACTS = frozenset({f"{LIB}verify.json", f"{LIB}provenance.json"})
# Command-line tools: of no use inside a kernel, and every file is two requests of every client.
TOOLS = tuple(f"{PACKAGE}/{name}/" for name in ("bench", "doctor", "selftest", "hub/server", "hub/commands"))
REBUILD = "build it again with `make wheel`"


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """A wheel whose RECORD, name, metadata and build facts agree with its content."""

    path: Path
    filename: str
    version: str
    requires_python: str
    metadata: bytes
    platform: str  # linux_aarch64, linux_x86_64 or any
    facts: tuple[BuildFacts, ...]
    verify: str  # pass, no-library, or why it is not verified
    files: tuple[str, ...]  # of the package, PACKAGE/...
    licences: tuple[str, ...]  # <dist-info>/licenses/...

    @property
    def public_version(self) -> str:
        """The version without its local part, which says only how the wheel was built."""
        return Version(self.version).public

    @property
    def verified(self) -> bool:
        return self.verify in ("pass", "no-library")

    def kernel_files(self, *, native: bool) -> dict[str, bytes]:
        """What a kernel needs of the package; without `native` no library and no facts of one either."""
        unwanted = TOOLS if native else (*TOOLS, LIB)
        with zipfile.ZipFile(self.path) as archive:
            return {name: archive.read(name) for name in self.files if not name.startswith(unwanted)}

    def licence_files(self) -> dict[str, bytes]:
        """The licence texts, which have to go wherever the code goes."""
        with zipfile.ZipFile(self.path) as archive:
            return {f"licenses/{name.split('/licenses/', 1)[1]}": archive.read(name) for name in self.licences}


def _check_record(archive: zipfile.ZipFile, names: list[str], dist_info: str) -> None:
    record = f"{dist_info}/RECORD"
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(archive.read(record).decode())) if row}
    for name in names:
        if name == record:
            continue
        if name not in rows:
            raise IntegrityError(f"{name} is in the wheel but not in its RECORD", hint=REBUILD)
        algorithm, _, expected = rows[name].partition("=")
        if algorithm not in ("sha256", "sha384", "sha512"):
            raise IntegrityError(f"{name}: RECORD has no strong hash (found {rows[name]!r})", hint=REBUILD)
        digest = hashlib.new(algorithm, archive.read(name)).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != expected:
            raise IntegrityError(f"{name}: content does not match the wheel's RECORD", hint=REBUILD)
    missing = sorted(set(rows) - set(names))
    if missing:
        raise IntegrityError(f"RECORD names files that the wheel does not hold: {missing[:3]}", hint=REBUILD)


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    for name in names:
        check_file_path(name)
    if len(set(names)) != len(names):
        raise IntegrityError("the wheel holds a file twice", hint=REBUILD)
    return names


def _facts(archive: zipfile.ZipFile, names: list[str]) -> tuple[BuildFacts, ...]:
    found = []
    for name in sorted(names):
        if not (name.startswith(LIB) and name.endswith(".json")) or name in NOT_FACTS:
            continue
        facts = BuildFacts.from_json(archive.read(name).decode(), origin=name)
        library = LIB + facts.library
        if library not in names:
            raise IntegrityError(f"{name} describes {library}, which the wheel does not hold", hint=REBUILD)
        digest = hashlib.sha256(archive.read(library)).hexdigest()
        if digest != facts.sha256:
            raise IntegrityError(f"{library}: expected sha256 {facts.sha256}, found {digest}", hint=REBUILD)
        found.append(facts)
    described = {LIB + facts.library for facts in found}
    stray = sorted(name for name in names if name.startswith(LIB) and name.endswith(".so") and name not in described)
    if stray:
        raise IntegrityError(f"libraries without build facts: {stray}", hint=REBUILD)
    return tuple(found)


def _verify(archive: zipfile.ZipFile, names: list[str], facts: tuple[BuildFacts, ...]) -> str:
    if not facts:
        return "no-library"
    report = f"{LIB}verify.json"
    if report not in names:
        return f"the wheel holds no {report}"
    try:
        value = json.loads(archive.read(report))
    except ValueError as error:
        return f"{report} is not JSON: {error}"
    said = value.get("verdict") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or said != "pass":
        return f"{report} says {said!r}, not 'pass'"
    libraries = value.get("libraries")
    for item in facts:
        seen = libraries.get(item.library) if isinstance(libraries, Mapping) else None
        if not isinstance(seen, Mapping) or seen.get("sha256") != item.sha256:
            return f"{report} is not about this {item.library}"
    return "pass"


def _platform(tags: frozenset[str], facts: tuple[BuildFacts, ...]) -> str:
    if not facts:
        return "any"
    platforms = {item.platform for item in facts}
    if len(platforms) != 1:
        raise IntegrityError(f"the wheel mixes platforms: {sorted(platforms)}", hint=REBUILD)
    (platform,) = platforms
    machine = platform.removeprefix("linux_")
    if not all(tag.endswith(machine) for tag in tags):
        raise IntegrityError(f"the wheel is tagged {sorted(tags)} but holds libraries for {platform}", hint=REBUILD)
    return platform


def read_wheel(path: Path, *, name: str | None = None) -> WheelFile:
    """Read and judge a wheel (called `name` where the file is not).

    Raises HubError for one that is not ours, IntegrityError for one that lies.
    """
    filename = check_wheel_name(name or path.name)
    try:
        project, version, _, tags = parse_wheel_filename(filename)
    except InvalidWheelFilename as error:
        raise HubError(f"{path}: {error}") from error
    if project != canonicalize_name(PACKAGE):
        raise HubError(f"{path}: expected a wheel of {PACKAGE}, found one of {project}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = _names(archive)
            dist_info = next(
                (n.split("/")[0] for n in names if n.endswith(".dist-info/RECORD") and n.count("/") == 1), ""
            )
            if not dist_info:
                raise IntegrityError("the wheel holds no RECORD", hint=REBUILD)
            _check_record(archive, names, dist_info)
            metadata = archive.read(f"{dist_info}/METADATA")
            facts = _facts(archive, names)
            verdict = _verify(archive, names, facts)
    except OSError as error:
        raise HubError(f"cannot read {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise IntegrityError(f"{path}: not a whole wheel: {error}", hint=REBUILD) from error
    except HubError as error:
        raise type(error)(f"{filename}: {error.args[0]}", hint=error.hint) from error
    headers = email.parser.BytesHeaderParser().parsebytes(metadata)
    if canonicalize_name(headers["Name"] or "") != project or Version(headers["Version"] or "0") != version:
        raise IntegrityError(f"{filename}: METADATA says {headers['Name']} {headers['Version']}", hint=REBUILD)
    return WheelFile(
        path=path,
        filename=filename,
        version=str(version),
        requires_python=headers["Requires-Python"] or "",
        metadata=metadata,
        platform=_platform(frozenset(tag.platform for tag in tags), facts),
        facts=facts,
        verify=verdict,
        files=tuple(sorted(n for n in names if n.startswith(f"{PACKAGE}/"))),
        licences=tuple(sorted(n for n in names if n.startswith(f"{dist_info}/licenses/"))),
    )
