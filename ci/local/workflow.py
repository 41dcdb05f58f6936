"""Reading a workflow file: jobs in the order of their needs, each with its matrix spread out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ci.local.expressions import expand
from flash_attn3_sm121.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """One file; `jobs` come after those that they need."""

    path: Path
    env: Mapping[str, Any]
    inputs: Mapping[str, Any]  # with their defaults
    jobs: Mapping[str, Mapping[str, Any]]


def read_workflow(path: Path, inputs: Mapping[str, str]) -> Workflow:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("jobs"), dict):
        raise UsageError(f"{path}: not a workflow: no jobs")
    declared = _declared_inputs(data)
    unknown = sorted(set(inputs) - set(declared))
    if unknown:
        raise UsageError(f"{path}: no input {', '.join(unknown)}", hint=f"it has: {', '.join(declared) or 'none'}")
    return Workflow(
        path=path, env=data.get("env") or {}, inputs={**declared, **inputs}, jobs=_in_order(data["jobs"], path=path)
    )


def _declared_inputs(data: Mapping[Any, Any]) -> dict[str, Any]:
    triggers = data.get("on", data.get(True)) or {}  # YAML 1.1 reads `on` as a boolean
    found: dict[str, Any] = {}
    for name in ("workflow_dispatch", "workflow_call"):
        trigger = triggers.get(name) if isinstance(triggers, Mapping) else None
        for key, about in ((trigger or {}).get("inputs") or {}).items():
            found[key] = (about or {}).get("default", "")
    return found


def needs_of(job: Mapping[str, Any]) -> list[str]:
    needs = job.get("needs") or []
    return [needs] if isinstance(needs, str) else list(needs)


def _in_order(jobs: Mapping[str, Any], *, path: Path) -> dict[str, Mapping[str, Any]]:
    order: dict[str, Mapping[str, Any]] = {}
    while len(order) < len(jobs):
        ready = [name for name, job in jobs.items() if name not in order and set(needs_of(job)) <= set(order)]
        if not ready:
            stuck = sorted(set(jobs) - set(order))
            raise UsageError(f"{path}: jobs need each other or something that is not there: {', '.join(stuck)}")
        order |= {name: jobs[name] for name in ready}
    return order


def entries(job: Mapping[str, Any], context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The matrix of a job, one mapping an instance; a job without one has a single empty entry."""
    matrix = expand((job.get("strategy") or {}).get("matrix") or {}, context)
    if not isinstance(matrix, Mapping):
        raise UsageError(f"not a matrix: {matrix!r}", hint="the job that prints it has to come first")
    if "exclude" in matrix:
        raise UsageError("a matrix with `exclude` is not known here")
    found: list[dict[str, Any]] = [{}]
    for key, values in matrix.items():
        if key != "include":
            found = [{**entry, key: value} for entry in found for value in values]
    include = [dict(entry) for entry in matrix.get("include", ())]
    return include if include and found == [{}] else found + include
