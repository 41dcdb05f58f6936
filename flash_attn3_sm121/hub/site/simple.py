"""The pip index: PEP 503 pages, their JSON form (PEP 691, with PEP 700's fields), and where metadata lies (PEP 658)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from flash_attn3_sm121.hub.index import Index, WheelEntry

JSON_TYPE = "application/vnd.pypi.simple.v1+json"
API_VERSION = "1.1"


def projects(index: Index) -> dict[str, dict[str, WheelEntry]]:
    """Project -> its wheels by file name, in the order in which they came in."""
    from packaging.utils import canonicalize_name

    found: dict[str, dict[str, WheelEntry]] = {}
    for filename, wheel in sorted(index.wheels.items(), key=lambda item: (item[1].added, item[0])):
        found.setdefault(canonicalize_name(wheel.name), {})[filename] = wheel
    return found


def file_row(filename: str, wheel: WheelEntry) -> dict[str, Any]:
    """PEP 691's description of one file. Addresses are relative, so a proxy may put the hub under any prefix."""
    row: dict[str, Any] = {
        "filename": filename,
        "url": f"../../files/{quote(filename)}",
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


def project_json(project: str, wheels: Mapping[str, WheelEntry]) -> dict[str, Any]:
    return {
        "meta": {"api-version": API_VERSION},
        "name": project,
        "versions": list(dict.fromkeys(wheel.version for wheel in wheels.values())),
        "files": [file_row(name, wheel) for name, wheel in wheels.items()],
    }


def _html(title: str, rows: list[str]) -> str:
    head = (
        "<!DOCTYPE html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        f'<meta name="pypi:repository-version" content="{API_VERSION}">\n<title>{escape(title)}</title>\n</head>\n'
    )
    return f"{head}<body>\n<h1>{escape(title)}</h1>\n" + "".join(f"{row}<br>\n" for row in rows) + "</body>\n</html>\n"


def project_html(project: str, wheels: Mapping[str, WheelEntry]) -> str:
    rows = []
    for name, wheel in wheels.items():
        row = file_row(name, wheel)
        digest = f"sha256={wheel.metadata_sha256}"
        rows.append(
            f'<a href="{escape(row["url"])}#sha256={wheel.sha256}"'
            + (f' data-requires-python="{escape(wheel.requires_python)}"' if wheel.requires_python else "")
            + f' data-core-metadata="{digest}" data-dist-info-metadata="{digest}">{escape(name)}</a>'
        )
    return _html(f"Links for {project}", rows)


def list_json(names: list[str]) -> dict[str, Any]:
    return {"meta": {"api-version": API_VERSION}, "projects": [{"name": name} for name in names]}


def list_html(names: list[str]) -> str:
    return _html("Simple index", [f'<a href="{quote(name)}/">{escape(name)}</a>' for name in names])
