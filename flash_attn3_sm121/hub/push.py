"""Push repositories of this hub to an organisation on the Hugging Face hub. A plan lists every file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flash_attn3_sm121.console import format_bytes
from flash_attn3_sm121.errors import HubError, pip_command
from flash_attn3_sm121.hub.checkout import Resolved, resolve
from flash_attn3_sm121.hub.index import Index, Manifest
from flash_attn3_sm121.hub.layout import RepoName
from flash_attn3_sm121.hub.publish import VERSION_REF
from flash_attn3_sm121.hub.store import Hub

REPO_TYPE = "kernel"
BRANCHES = ("main", VERSION_REF)  # `get_kernel(repo, version=1)` looks for the branch v1


def plan_push(hub: Hub, index: Index, repos: Sequence[str]) -> list[Resolved]:
    """What to upload of a hub: the newest revision of each repository."""
    return [resolve(hub, index, name) for name in repos]


def plan_rehearsed(manifests: Mapping[RepoName, Manifest]) -> list[Resolved]:
    """What there would be to upload after a publish."""
    return [
        Resolved(repo=name, revision=manifest.revision, ref=BRANCHES[0], manifest=manifest)
        for name, manifest in manifests.items()
    ]


def render_plan(plan: Sequence[Resolved], *, really: bool) -> str:
    """A plan as text: every file of every repository."""
    lines = []
    for found in plan:
        files = found.manifest.files
        size = sum(entry.size for entry in files.values())
        lines.append(
            f"{'uploading' if really else 'would upload'} {found.repo} (type {REPO_TYPE}, branches "
            f"{', '.join(BRANCHES)}): {len(files)} files, {format_bytes(size)}, revision {found.revision[:12]}"
        )
        lines += [f"  {entry.sha256}  {entry.size:>10}  {path}" for path, entry in sorted(files.items())]
    if not really:
        lines.append("nothing was uploaded or published: say --yes to do it (huggingface_hub must be logged in)")
    return "\n".join(lines)


def _api() -> Any:
    from huggingface_hub import HfApi, constants

    if REPO_TYPE not in getattr(constants, "REPO_TYPES_WITH_KERNEL", ()):
        hint = f'{pip_command()} install --upgrade "huggingface_hub>=1.3"'
        raise HubError("this huggingface_hub knows no kernel repositories", hint=hint)
    return HfApi(library_name="flash_attn3_sm121")


def push(hub: Hub, plan: Sequence[Resolved], api: Any = None) -> None:
    """Upload: one commit a branch, in which files that are no longer there are deleted."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    client = _api() if api is None else api
    for found in plan:
        name, files = str(found.repo), found.manifest.files
        client.create_repo(name, repo_type=REPO_TYPE, exist_ok=True)
        for branch in BRANCHES:
            if branch != "main":
                client.create_branch(name, repo_type=REPO_TYPE, branch=branch, exist_ok=True)
            there = set(client.list_repo_files(name, repo_type=REPO_TYPE, revision=branch))
            stale = sorted(there - set(files) - {".gitattributes"})
            operations: list[Any] = [CommitOperationDelete(path_in_repo=path) for path in stale]
            operations += [
                CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(hub.verified(entry)))
                for path, entry in sorted(files.items())
            ]
            print(f"flash-attn3: {name}: {len(operations)} operations on {branch} ...", file=sys.stderr)
            message = f"flash_attn3_sm121 {found.manifest.version} (revision {found.revision[:12]})"
            client.create_commit(name, operations, commit_message=message, repo_type=REPO_TYPE, revision=branch)
