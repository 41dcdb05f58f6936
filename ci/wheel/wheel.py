"""Writing wheels: what goes in, under which name, and the same bytes each time."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ci import ROOT
from ci.wheel import metadata
from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.fa2 import names as fa2

PACKAGE = "flash_attn3_sm121"
LIB = f"{PACKAGE}/lib"
# `site` appends this folder behind site-packages: an upstream flash_attn_3 that is installed as well wins.
PTH = f"{PACKAGE}/_dropin\n"
# The zip format's first day. A build has no time of its own.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FA2_README = f"""# flash_attn, served by {PACKAGE}

Not FlashAttention-2: its names (`flash_attn`, `flash_attn_2_cuda`) and its meaning over {PACKAGE}, for programs
that know no other. Dropout and ALiBi are refused. It must not be installed beside a flash_attn of somebody else's.
"""
_SKIPPED_SUFFIXES = (".pyc", ".so", ".o")


@dataclass(frozen=True, kw_only=True)
class WheelName:
    """A wheel's file name; every other name in it is a property of this."""

    version: str
    platform_tag: str  # manylinux_2_34_aarch64, or any
    project: str = PACKAGE

    @classmethod
    def native(cls, *, pin: str, targets: Sequence[str], profile: str, proxy: bool, platform_tag: str) -> WheelName:
        """Of a wheel with libraries; `targets` as in an architecture list (12.1, 9.0a+PTX)."""
        return cls(version=native_version(pin, targets, profile=profile, proxy=proxy), platform_tag=platform_tag)

    @property
    def dist_info(self) -> str:
        return f"{self.project}-{self.version}.dist-info"

    @property
    def tag(self) -> str:
        return f"py3-none-{self.platform_tag}"

    @property
    def file(self) -> str:
        return f"{self.project}-{self.version}-{self.tag}.whl"


def native_version(pin: str, targets: Sequence[str], *, profile: str, proxy: bool) -> str:
    """The version of a wheel with libraries: the pin, each target's number, the profile."""
    numbers = [target.replace(".", "").replace("+PTX", "ptx") for target in targets]
    return f"{__version__}+g{pin}.{'.'.join([*numbers, profile, *(['proxy'] if proxy else [])])}"


def pure_name() -> WheelName:
    return WheelName(version=__version__, platform_tag="any")


def package_files(root: Path = ROOT) -> dict[str, bytes]:
    """The files of the Python package in the repository, without libraries, some of which may lie there."""
    folder = root / PACKAGE
    files: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if (
            hidden
            or not path.is_file()
            or path.suffix in _SKIPPED_SUFFIXES
            or relative.as_posix().startswith(f"{LIB}/")
        ):
            continue
        files[relative.as_posix()] = path.read_bytes()
    files[f"{PACKAGE}.pth"] = PTH.encode()
    return files


def license_files(upstream: Sequence[Path], root: Path = ROOT) -> dict[str, bytes]:
    """Ours, and those of what is compiled in."""
    return {path.name: path.read_bytes() for path in (root / "LICENSE", *upstream)}


def _described(
    name: WheelName, files: Mapping[str, bytes], project: metadata.Project, licenses: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Files with what a wheel says about itself, but for RECORD."""
    described = metadata.metadata(project, version=name.version, licenses=tuple(sorted(licenses)))
    info = name.dist_info
    return {
        **files,
        **{f"{info}/licenses/{inner}": data for inner, data in licenses.items()},
        f"{info}/METADATA": described.encode(),
        f"{info}/WHEEL": metadata.wheel_file(tag=name.tag, pure=name.platform_tag == "any").encode(),
    }


def wheel_files(
    name: WheelName,
    *,
    libraries: Mapping[str, bytes],
    licenses: Mapping[str, bytes],
    root: Path = ROOT,
) -> dict[str, bytes]:
    """Every file of a wheel but RECORD. `libraries` maps names inside lib/ to contents."""
    project = metadata.read_project(root)
    files = package_files(root) | {f"{LIB}/{inner}": data for inner, data in libraries.items()}
    files[f"{name.dist_info}/entry_points.txt"] = metadata.entry_points(project).encode()
    return _described(name, files, project, licenses)


def fa2_name() -> WheelName:
    """The second wheel: flash_attn, in the version whose interface it has. Programs compare versions: no local part."""
    return WheelName(project=fa2.PACKAGE, version=fa2.VERSION, platform_tag="any")


def fa2_files(name: WheelName, root: Path = ROOT) -> dict[str, bytes]:
    """Every file of FlashAttention-2's wheel but RECORD: the thin modules of the package, and metadata of its own."""
    folder = root / PACKAGE / fa2.FOLDER.relative_to(fa2.FOLDER.parents[1])
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}
    project = replace(
        metadata.read_project(root),
        name=name.project,
        summary=f"FlashAttention-2's names, served by {PACKAGE}",
        readme=_FA2_README,
        dependencies=(f"{PACKAGE}=={__version__}",),
        extras={},
    )
    tops = sorted({path.split("/")[0].removesuffix(".py") for path in files})
    files[f"{name.dist_info}/top_level.txt"] = "".join(f"{top}\n" for top in tops).encode()
    return _described(name, files, project, license_files((), root))


def record(files: Mapping[str, bytes], *, info: str) -> bytes:
    """RECORD: every file with its hash and size, itself last and without."""
    lines = []
    for name in sorted(files):
        if "," in name or '"' in name:
            raise UsageError(f"{name}: a file name with a comma or a quote cannot go into a wheel")
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(files[name])}\n")
    return "".join([*lines, f"{info}/RECORD,,\n"]).encode()


def wheel_bytes(name: WheelName, files: Mapping[str, bytes]) -> bytes:
    """The wheel. Sorted, without times; stored and not deflated, because deflate's bytes differ between zlib builds.

    The machine code is compressed inside the library already.
    """
    info = name.dist_info
    everything = [(path, files[path]) for path in sorted(files)] + [(f"{info}/RECORD", record(files, info=info))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, data in everything:
            entry = zipfile.ZipInfo(path, date_time=_EPOCH)
            entry.create_system = 3  # Unix, wherever this runs
            entry.external_attr = (0o100755 if path.endswith(".so") else 0o100644) << 16
            archive.writestr(entry, data)
    return buffer.getvalue()
