"""Files from the package index that pip is configured for, each pinned by its sha256.

pip itself downloads wheels (`ci.index.pip`). A source distribution comes through pypi-simple (`ci.index.pages`),
as pip would run that project's build to read its metadata. A few folders of a large wheel come through remotezip
(`ci.index.members`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One file of a project, pinned by its content."""

    project: str
    filename: str
    sha256: str
