"""provenance.json: what a wheel was made from, for people who want to make it again. No time, path or machine name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ci.build.artifact import Artifact

SCHEMA = 1


def document(
    artifacts: Sequence[Artifact],
    *,
    lock: Mapping[str, Any],
    edits: Sequence[Mapping[str, str]],
    libraries: Mapping[str, str],
    schemas: Mapping[str, str],
) -> dict[str, Any]:
    """`libraries` maps file names to sha256; `schemas` are upstream's, as its own source declares them."""
    identity = artifacts[0].identity
    return {
        "schema": SCHEMA,
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


def to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
