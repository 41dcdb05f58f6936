"""Another CUDA version for the toolchain's lock: the newest packages of it that an index offers for both machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.utils import parse_wheel_filename
from packaging.version import Version

from ci.index import Wanted
from ci.toolchain.installed import format_version, parse_version
from ci.toolchain.pins import FILE, MACHINES, read_pins
from flash_attn3_sm121.errors import ToolchainError

COMPILER = "nvidia-cuda-nvcc"
Releases = dict[Version, dict[str, Wanted]]  # version -> machine -> wheel


def releases(wheels: Sequence[Wanted]) -> Releases:
    """The versions of a project, without those before a release, that have a wheel for Linux on each machine."""
    found: Releases = {}
    for wheel in wheels:
        _, version, _, tags = parse_wheel_filename(wheel.filename)
        for machine in MACHINES:
            linux = any("linux" in tag.platform and tag.platform.endswith(machine) for tag in tags)
            if linux and not version.is_prerelease:
                found.setdefault(version, {})[machine] = wheel
    return {version: files for version, files in found.items() if len(files) == len(MACHINES)}


def raised(asked: str | None, offers: Callable[[str], Sequence[Wanted]], *, path: Path = FILE) -> str:
    """The text of the lock with another CUDA version.

    The compiler's packages, which have one version in the lock, get the newest of the asked CUDA. The runtime and the
    headers get their newest that is not of a later CUDA. Tools that are ahead in the lock already (cuobjdump,
    nvdisasm) become the newest that there are.

    Args:
        asked: a version such as 13.5; None is the newest one.
        offers: the wheels of a project.
        path: the lock as it is.

    Raises:
        ToolchainError: the index does not have the compiler in that version for both machines.
    """
    pins = read_pins(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    known = {package.project: releases(offers(package.project)) for package in pins.packages}
    compiler = {p.project for p in pins.packages if p.version == pins.package(COMPILER).version}
    there = sorted(set.intersection(*(set(known[project]) for project in compiler)))
    fitting = [v for v in there if asked is None or v.release[:2] == parse_version(asked, origin="--to-cuda")]
    if not fitting:
        versions = ", ".join(dict.fromkeys(f"{v.major}.{v.minor}" for v in there)) or "none"
        raise ToolchainError(
            f"the index has no CUDA {asked or 'compiler'}: {', '.join(sorted(compiler))} in one version for "
            f"{' and '.join(MACHINES)}",
            hint=f"it has these: {versions}",
        )
    cuda = (fitting[-1].major, fitting[-1].minor)
    data["cuda"] = format_version(cuda)
    for row in data["packages"]:
        found = known[row["project"]]
        if row["project"] in compiler:
            newest = fitting[-1]
        elif parse_version(row["version"], origin=row["project"]) <= pins.cuda:
            newest = max(v for v in found if v.major == cuda[0] and v.minor <= cuda[1])
        else:
            newest = max(found)
        row["version"] = str(newest)
        row["wheels"] = {m: {"filename": w.filename, "sha256": w.sha256} for m, w in sorted(found[newest].items())}
    return json.dumps(data, indent=2) + "\n"
