"""Reads and checks a wheel before anything of it gets into the hub. Nothing is unpacked."""

from __future__ import annotations

import base64
import csv
import email.parser
import hashlib
import io
import json
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from flash_attn3_sm121.call.schemas import differences
from flash_attn3_sm121.errors import FactsError, HubError, IntegrityError
from flash_attn3_sm121.fa2 import names as fa2
from flash_attn3_sm121.hub.layout import PACKAGE, check_file_path, check_wheel_name
from flash_attn3_sm121.native.buildfacts import EXECUTED_FILE, BuildFacts, executed_line

LIB = f"{PACKAGE}/lib/"
NOT_FACTS = frozenset({f"{LIB}{name}.json" for name in ("executed", "provenance", "verify")})
# Command-line tools: of no use inside a kernel, and every file is two requests of every client.
TOOLS = tuple(
    f"{PACKAGE}/{name}/" for name in ("bench", "doctor", "fa2", "selftest", "hub/server", "hub/site", "hub/commands")
)
REBUILD = "build it again with `make wheel`"
CHUNK = 1 << 20
# METADATA, RECORD and the JSON files are read whole; the libraries, which may be gigabytes, never are.
LARGEST_TEXT = 16 << 20
# Machine code compresses five to ten times. What unpacks to more than this was made to fill a disk.
LARGEST_RATIO, ALWAYS_ALLOWED = 50, 64 << 20


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """A wheel whose RECORD, name, metadata and build facts agree with its content."""

    path: Path
    filename: str
    project: str  # flash_attn3_sm121, or flash_attn, which is FlashAttention-2's names over it
    version: str
    requires_python: str
    metadata: bytes
    platform: str  # linux_aarch64, linux_x86_64 or any
    facts: tuple[BuildFacts, ...]
    verify: str  # pass, no-library, or why it is not verified
    checks: tuple[str, ...]  # the rules that the verify report says were held, and what was executed in software
    files: tuple[str, ...]  # of the package, PACKAGE/...
    licences: tuple[str, ...]  # <dist-info>/licenses/...

    @property
    def public_version(self) -> str:
        """The version without its local part, which says only how the wheel was built."""
        return Version(self.version).public

    @property
    def verified(self) -> bool:
        return self.verify in ("pass", "no-library")

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(sorted(item.family for item in self.facts))

    @property
    def images(self) -> tuple[str, ...]:
        """The machine code of all libraries, and their PTX."""
        return tuple(sorted({image for item in self.facts for image in (*item.images, *item.ptx)}))

    def kernel_files(self, *, native: bool) -> dict[str, str]:
        """What a kernel needs of the package, by its path there -> the wheel's member.

        Without `native` no library and no facts of one. The licence texts have to go wherever the code goes.
        """
        unwanted = TOOLS if native else (*TOOLS, LIB)
        licences = {f"licenses/{name.split('/licenses/', 1)[1]}": name for name in self.licences}
        return {**{name: name for name in self.files if not name.startswith(unwanted)}, **licences}

    def members(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, IO[bytes]]]:
        """Open members one after the other: (the name that `wanted` gives it, a stream)."""
        with zipfile.ZipFile(self.path) as archive:
            for name, member in wanted.items():
                with archive.open(member) as stream:
                    yield name, stream


def _text(archive: zipfile.ZipFile, name: str) -> str:
    """A small member as text."""
    size = archive.getinfo(name).file_size
    if size > LARGEST_TEXT:
        raise IntegrityError(f"{name} has {size} bytes, expected at most {LARGEST_TEXT}", hint=REBUILD)
    try:
        return archive.read(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{name} is not UTF-8: {error}", hint=REBUILD) from error


def _hash(archive: zipfile.ZipFile, name: str, algorithm: str) -> bytes:
    digest = hashlib.new(algorithm)
    with archive.open(name) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.digest()


def _check_record(archive: zipfile.ZipFile, names: list[str], dist_info: str) -> None:
    record = f"{dist_info}/RECORD"
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(_text(archive, record))) if len(row) > 1}
    for name in names:
        if name == record:
            continue
        if name not in rows:
            raise IntegrityError(f"{name} is in the wheel but not in its RECORD", hint=REBUILD)
        algorithm, _, expected = rows[name].partition("=")
        if algorithm not in ("sha256", "sha384", "sha512"):
            raise IntegrityError(f"{name}: RECORD has no strong hash (found {rows[name]!r})", hint=REBUILD)
        if base64.urlsafe_b64encode(_hash(archive, name, algorithm)).rstrip(b"=").decode() != expected:
            raise IntegrityError(f"{name}: content does not match the wheel's RECORD", hint=REBUILD)
    missing = sorted(set(rows) - set(names))
    if missing:
        raise IntegrityError(f"RECORD names files that the wheel does not hold: {missing[:3]}", hint=REBUILD)


def _names(archive: zipfile.ZipFile, size: int) -> list[str]:
    """The plain files of a wheel of `size` bytes; anything that a wheel of ours never holds is refused."""
    members = [info for info in archive.infolist() if not info.is_dir()]
    for info in members:
        check_file_path(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise IntegrityError(f"{info.filename} is a link or another special file", hint=REBUILD)
        if info.flag_bits & 1:
            raise IntegrityError(f"{info.filename} is encrypted", hint=REBUILD)
    unpacked, limit = sum(info.file_size for info in members), max(size * LARGEST_RATIO, ALWAYS_ALLOWED)
    if unpacked > limit:
        raise IntegrityError(f"{size} bytes unpack to {unpacked}, expected at most {limit}: a zip bomb", hint=REBUILD)
    names = [info.filename for info in members]
    if len(set(names)) != len(names):
        raise IntegrityError("the wheel holds a file twice", hint=REBUILD)
    return names


def _facts(archive: zipfile.ZipFile, names: list[str]) -> tuple[BuildFacts, ...]:
    found = []
    for name in sorted(names):
        if not (name.startswith(LIB) and name.endswith(".json")) or name in NOT_FACTS:
            continue
        facts = BuildFacts.from_json(_text(archive, name), origin=name)
        library = LIB + facts.library
        if library not in names:
            raise IntegrityError(f"{name} describes {library}, which the wheel does not hold", hint=REBUILD)
        digest = _hash(archive, library, "sha256").hex()
        if digest != facts.sha256:
            raise IntegrityError(f"{library}: expected sha256 {facts.sha256}, found {digest}", hint=REBUILD)
        found.append(facts)
    described = {LIB + facts.library for facts in found}
    stray = sorted(name for name in names if name.startswith(LIB) and name.endswith(".so") and name not in described)
    if stray:
        raise IntegrityError(f"libraries without build facts: {stray}", hint=REBUILD)
    return tuple(found)


def _json(archive: zipfile.ZipFile, names: list[str], name: str) -> Mapping[str, Any] | str:
    """A JSON object out of a wheel, or why there is none."""
    if name not in names:
        return f"the wheel holds no {name}"
    try:
        value = json.loads(_text(archive, name))
    except ValueError as error:
        return f"{name} is not JSON: {error}"
    return value if isinstance(value, Mapping) else f"{name} holds no JSON object"


def _verify(archive: zipfile.ZipFile, names: list[str], facts: tuple[BuildFacts, ...]) -> str:
    if not facts:
        return "no-library"
    report = f"{LIB}verify.json"
    value = _json(archive, names, report)
    if isinstance(value, str):
        return value
    if value.get("verdict") != "pass":
        return f"{report} says {value.get('verdict')!r}, not 'pass'"
    libraries = value.get("libraries")
    for item in facts:
        seen = libraries.get(item.library) if isinstance(libraries, Mapping) else None
        if not isinstance(seen, Mapping) or seen.get("sha256") != item.sha256:
            return f"{report} is not about this {item.library}"
    return _schemas(archive, names)


def _schemas(archive: zipfile.ZipFile, names: list[str]) -> str:
    """`pass` where the wheel's ops are those that its Python side calls: the rule that `make verify` has too."""
    story = f"{LIB}provenance.json"
    value = _json(archive, names, story)
    if isinstance(value, str):
        return value
    declared = value.get("op_schemas")
    if not isinstance(declared, Mapping):
        return f"{story} names no op schemas"
    different = differences(declared)
    return f"other ops than the Python interface calls: {'; '.join(different)}" if different else "pass"


def _checks(archive: zipfile.ZipFile, names: list[str]) -> tuple[str, ...]:
    """The rules that a verify report says were held."""
    report = f"{LIB}verify.json"
    checks = json.loads(_text(archive, report)).get("checks", []) if report in names else []
    return tuple(sorted({str(check["rule"]) for check in checks if isinstance(check, Mapping) and check.get("ok")}))


def _executed(archive: zipfile.ZipFile, names: list[str]) -> tuple[str, ...]:
    """What ran in software before the wheel was made, in a line; nothing where the wheel does not say."""
    report = f"{LIB}{EXECUTED_FILE}"
    if report not in names:
        return ()
    try:
        return (executed_line(json.loads(_text(archive, report))),)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{report} is not what `make prove` writes: {error!r}", hint=REBUILD) from error


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


def _version(text: str | None) -> Version | None:
    try:
        return Version(text or "0")
    except InvalidVersion:
        return None


def read_wheel(path: Path, *, name: str | None = None) -> WheelFile:
    """Read and judge a wheel (called `name` where the file is not).

    Raises HubError for one that is not ours, IntegrityError for one that lies.
    """
    filename = check_wheel_name(name or path.name)
    try:
        project, version, _, tags = parse_wheel_filename(filename)
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise HubError(f"{path}: {error}") from error
    ours = {canonicalize_name(name): name for name in (PACKAGE, fa2.PACKAGE)}
    if project not in ours:
        raise HubError(f"{path}: expected a wheel of {PACKAGE}, found one of {project}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = _names(archive, path.stat().st_size)
            dist_info = next(
                (n.split("/")[0] for n in names if n.endswith(".dist-info/RECORD") and n.count("/") == 1), ""
            )
            if not dist_info:
                raise IntegrityError("the wheel holds no RECORD", hint=REBUILD)
            _check_record(archive, names, dist_info)
            metadata = _text(archive, f"{dist_info}/METADATA").encode()
            facts = _facts(archive, names)
            verdict = _verify(archive, names, facts)
            checks = (*_checks(archive, names), *_executed(archive, names)) if verdict == "pass" else ()
    except OSError as error:
        raise HubError(f"cannot read {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, csv.Error) as error:
        raise IntegrityError(f"{path}: not a whole wheel: {error}", hint=REBUILD) from error
    except FactsError as error:
        raise IntegrityError(f"{filename}: {error}", hint=REBUILD) from error
    except HubError as error:
        raise type(error)(f"{filename}: {error.args[0]}", hint=error.hint) from error
    headers = email.parser.BytesHeaderParser().parsebytes(metadata)
    if canonicalize_name(headers["Name"] or "") != project or _version(headers["Version"]) != version:
        raise IntegrityError(f"{filename}: METADATA says {headers['Name']} {headers['Version']}", hint=REBUILD)
    if ours[project] != PACKAGE and not any(f"{PACKAGE}==" in text for text in headers.get_all("Requires-Dist", [])):
        raise HubError(f"{filename}: a {project} of somebody else's, which does not stand on {PACKAGE}", hint=fa2.BUILD)
    return WheelFile(
        path=path,
        filename=filename,
        project=ours[project],
        version=str(version),
        requires_python=headers["Requires-Python"] or "",
        metadata=metadata,
        platform=_platform(frozenset(tag.platform for tag in tags), facts),
        facts=facts,
        verify=verdict,
        checks=checks,
        files=tuple(sorted(n for n in names if n.startswith(f"{PACKAGE}/"))),
        licences=tuple(sorted(n for n in names if n.startswith(f"{dist_info}/licenses/"))),
    )
