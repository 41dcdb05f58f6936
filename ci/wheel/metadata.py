"""What a wheel says about itself: METADATA, WHEEL and entry points from pyproject.toml, and its provenance."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ci.build.artifact import Artifact
from flash_attn3_sm121.errors import UsageError

# The same module, in the standard library since 3.11; requirements-build.txt brings it to 3.10.
_toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

GENERATOR = "flash_attn3_sm121 (ci.wheel)"


@dataclass(frozen=True, kw_only=True)
class Project:
    """The part of pyproject.toml that a wheel needs."""

    name: str
    summary: str
    readme: str
    requires_python: str
    license: str
    classifiers: tuple[str, ...]
    dependencies: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]
    scripts: Mapping[str, str]
    entry_points: Mapping[str, Mapping[str, str]]


def read_project(root: Path) -> Project:
    """Read `root/pyproject.toml` and the readme that it names."""
    path = root / "pyproject.toml"
    try:
        data: dict[str, Any] = _toml.loads(path.read_text(encoding="utf-8"))
        table = data["project"]
        return Project(
            name=table["name"],
            summary=table["description"],
            readme=(root / table["readme"]).read_text(encoding="utf-8"),
            requires_python=table["requires-python"],
            license=table["license"],
            classifiers=tuple(table.get("classifiers", ())),
            dependencies=tuple(table.get("dependencies", ())),
            extras={name: tuple(items) for name, items in table.get("optional-dependencies", {}).items()},
            scripts=dict(table.get("scripts", {})),
            entry_points={group: dict(items) for group, items in table.get("entry-points", {}).items()},
        )
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path}: cannot be used for a wheel: {error!r}") from error


def metadata(project: Project, *, version: str, licenses: tuple[str, ...]) -> str:
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {project.name}",
        f"Version: {version}",
        f"Summary: {project.summary}",
        f"License-Expression: {project.license}",
        *(f"License-File: {name}" for name in licenses),
        *(f"Classifier: {text}" for text in project.classifiers),
        f"Requires-Python: {project.requires_python}",
        *(f"Requires-Dist: {text}" for text in project.dependencies),
    ]
    for extra, items in project.extras.items():
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {_with_extra(item, extra)}" for item in items)]
    lines += ["Description-Content-Type: text/markdown", "", project.readme]
    return "\n".join(lines)


def _with_extra(requirement: str, extra: str) -> str:
    body, _, marker = requirement.partition(";")
    condition = f'extra == "{extra}"'
    return f"{body.strip()} ; ({marker.strip()}) and {condition}" if marker else f"{body.strip()} ; {condition}"


def wheel_file(*, tag: str, pure: bool) -> str:
    root = "true" if pure else "false"
    return f"Wheel-Version: 1.0\nGenerator: {GENERATOR}\nRoot-Is-Purelib: {root}\nTag: {tag}\n"


def entry_points(project: Project) -> str:
    groups = {"console_scripts": project.scripts, **project.entry_points}
    blocks = []
    for group, items in groups.items():
        if items:
            blocks.append(f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in sorted(items.items())))
    return "\n".join(blocks)


def provenance(
    artifacts: Sequence[Artifact],
    *,
    lock: Mapping[str, Any],
    edits: Sequence[Mapping[str, str]],
    libraries: Mapping[str, str],
    schemas: Mapping[str, str],
) -> dict[str, Any]:
    """The content of provenance.json: what the wheel was made from, for people who want to make it again.

    No time, path or machine name is in it. `libraries` maps file names to sha256; `schemas` are upstream's, as its own
    source declares them.
    """
    identity = artifacts[0].identity
    return {
        "schema": 1,
        "identity": asdict(identity),
        "lock": dict(lock),
        "edits": [dict(edit) for edit in edits],
        "op_schemas": dict(schemas),
        "libraries": dict(libraries),
        "families": {
            artifact.family: {
                "targets": list(artifact.targets),
                "units": [
                    {
                        "name": report.unit,
                        "key": report.key,
                        "object_sha256": report.sha256,
                        "ptx_sha256": dict(report.ptx),
                        "flags": list(artifact.flags[report.unit]),
                    }
                    for report in artifact.reports
                ],
            }
            for artifact in artifacts
        },
    }
