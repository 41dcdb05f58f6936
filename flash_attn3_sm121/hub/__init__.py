"""The local kernel hub: publish wheels, serve them as a kernel hub and a package index, override `get_kernel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["override", "restore"]


def override(repos: Mapping[str, str] | None = None, *, hub: str | Path | None = None, quiet: bool = False) -> None:
    """Serve `kernels.get_kernel` for the known FlashAttention-3 repositories from here, in this process.

    Call it before the client runs `from kernels import get_kernel`. `repos` adds repositories (name -> "fa3",
    "vllm" or "sgl"); `hub` names a hub folder to serve from instead of the installed package.
    """
    from flash_attn3_sm121.hub.layout import KNOWN_REPOS
    from flash_attn3_sm121.hub.patch import OverrideConfig, activate

    merged = {**KNOWN_REPOS, **(repos or {})}
    activate(OverrideConfig(repos=merged, hub=None if hub is None else str(Path(hub).absolute()), quiet=quiet))


def restore() -> None:
    """Take the override back."""
    from flash_attn3_sm121.hub.patch import deactivate

    deactivate()
