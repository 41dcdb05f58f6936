"""The pip index: PEP 503 pages, their JSON form (PEP 691, with PEP 700's fields), and where metadata lies (PEP 658).

pip has tags for a platform and none for a GPU, so a GPU that has kernels here gets an index of its own, like
`simple/sm121/`. It offers the slimmest wheel of a build that has the GPU's code; `simple/` offers the fattest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.hub.index import Index, WheelEntry
from flash_attn3_sm121.hub.site.templates import render

JSON_TYPE = "application/vnd.pypi.simple.v1+json"
API_VERSION = "1.1"


def indexes(index: Index) -> dict[str, dict[str, WheelEntry]]:
    """Folder -> the wheels that its index offers, by file name, in the order in which they came in."""
    wheels = dict(sorted(index.wheels.items(), key=lambda item: (item[1].added, item[0])))
    found = {"simple": _without(wheels, fatter=False)}
    for row in CAPABILITIES.values():
        fitting = {name: wheel for name, wheel in wheels.items() if wheel.code_for(row) is not None}
        if fitting:
            pure = {name: wheel for name, wheel in wheels.items() if not wheel.families}
            found[f"simple/sm{row.number}"] = _without(fitting, fatter=True) | pure
    return found


def _without(wheels: Mapping[str, WheelEntry], *, fatter: bool) -> dict[str, WheelEntry]:
    """The wheels without those that have the code of another one of their build and more (or less) than that."""
    builds: dict[tuple[str, ...], list[WheelEntry]] = {}
    for wheel in wheels.values():
        builds.setdefault(build_of(wheel), []).append(wheel)

    def left_out(wheel: WheelEntry) -> bool:
        own, others = set(wheel.images), (set(other.images) for other in builds[build_of(wheel)])
        return any(own > other if fatter else own < other for other in others)

    return {name: wheel for name, wheel in wheels.items() if not left_out(wheel)}


def build_of(wheel: WheelEntry) -> tuple[str, ...]:
    """Wheels that agree in this differ in nothing but the GPUs that they have code for."""
    return wheel.name, wheel.version.partition("+")[0], wheel.platform, wheel.upstream, wheel.profile, wheel.cuda


def projects(wheels: Mapping[str, WheelEntry]) -> dict[str, dict[str, WheelEntry]]:
    """Project -> its wheels by file name."""
    from packaging.utils import canonicalize_name

    found: dict[str, dict[str, WheelEntry]] = {}
    for filename, wheel in wheels.items():
        found.setdefault(canonicalize_name(wheel.name), {})[filename] = wheel
    return found


def file_row(filename: str, wheel: WheelEntry, *, up: str) -> dict[str, Any]:
    """PEP 691's description of one file. Addresses are relative, so a proxy may put the hub under any prefix.

    Args:
        filename: of the wheel.
        wheel: its entry.
        up: the way from the project's page to the root, such as `../../`.
    """
    row: dict[str, Any] = {
        "filename": filename,
        "url": f"{up}files/{quote(filename)}",
        "hashes": {"sha256": wheel.sha256},
        "size": wheel.size,
        "core-metadata": {"sha256": wheel.metadata_sha256},
        "yanked": False,
    }
    if wheel.requires_python:
        row["requires-python"] = wheel.requires_python
    if wheel.published:
        row["upload-time"] = wheel.published
    return row


def project_json(project: str, wheels: Mapping[str, WheelEntry], *, up: str) -> dict[str, Any]:
    return {
        "meta": {"api-version": API_VERSION},
        "name": project,
        "versions": list(dict.fromkeys(wheel.version for wheel in wheels.values())),
        "files": [file_row(name, wheel, up=up) for name, wheel in wheels.items()],
    }


def _link(filename: str, wheel: WheelEntry, *, up: str) -> dict[str, str | None]:
    """The attributes of one file's link."""
    digest = f"sha256={wheel.metadata_sha256}"
    return {
        "href": f"{up}files/{quote(filename)}#sha256={wheel.sha256}",
        "data-requires-python": wheel.requires_python or None,
        "data-core-metadata": digest,
        "data-dist-info-metadata": digest,
    }


def project_html(project: str, wheels: Mapping[str, WheelEntry], *, up: str) -> str:
    links = {name: _link(name, wheel, up=up) for name, wheel in wheels.items()}
    return render("simple.html", title=f"Links for {project}", links=links, api=API_VERSION, root=up)


def list_json(names: list[str]) -> dict[str, Any]:
    return {"meta": {"api-version": API_VERSION}, "projects": [{"name": name} for name in names]}


def list_html(names: list[str], *, up: str) -> str:
    links = {name: {"href": f"{quote(name)}/"} for name in names}
    return render("simple.html", title="Simple index", links=links, api=API_VERSION, root=up)
