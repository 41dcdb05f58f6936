"""FlashAttention-3 for the GPUs that upstream leaves out, with a complete fallback for every other device.

Importing this package imports neither torch nor any library: names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flash_attn3_sm121._version import __version__

if TYPE_CHECKING:
    from flash_attn3_sm121.api import interface as flash_attn_interface
    from flash_attn3_sm121.api.activation import activate
    from flash_attn3_sm121.api.explanation import explain
    from flash_attn3_sm121.api.interface import (
        flash_attn_combine,
        flash_attn_func,
        flash_attn_qkvpacked_func,
        flash_attn_varlen_func,
        flash_attn_with_kvcache,
        get_scheduler_metadata,
    )
    from flash_attn3_sm121.call.backend import set_backend, use_backend

__all__ = [
    "__version__",
    "activate",
    "explain",
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_interface",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
    "set_backend",
    "use_backend",
]

# name -> the module that has it
_HOMES = {
    "activate": "flash_attn3_sm121.api.activation",
    "explain": "flash_attn3_sm121.api.explanation",
    "set_backend": "flash_attn3_sm121.call.backend",
    "use_backend": "flash_attn3_sm121.call.backend",
    **{
        name: "flash_attn3_sm121.api.interface"
        for name in __all__
        if name.startswith("flash_attn_") or name == "get_scheduler_metadata"
    },
}


def __getattr__(name: str) -> Any:
    if name == "flash_attn_interface":  # kernel loaders hand out `module.flash_attn_interface`
        value: Any = importlib.import_module("flash_attn3_sm121.api.interface")
    elif name in _HOMES:
        module = importlib.import_module(_HOMES[name])
        value = getattr(module, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
