"""What `get_kernel` returns: a module with the public functions on top and as `flash_attn_interface` below."""

from __future__ import annotations

import importlib
import sys
from collections.abc import MutableMapping
from types import ModuleType
from typing import Any

from flash_attn3_sm121._version import UPSTREAM_VERSION
from flash_attn3_sm121.errors import HubError

INTERFACES = {
    "fa3": "flash_attn3_sm121.api.interface",
    "vllm": "flash_attn3_sm121.hub.vllm_interface",
    "sgl": "flash_attn3_sm121.hub.sgl_interface",
}
PUBLIC = (
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_with_kvcache",
    "flash_attn_combine",
    "get_scheduler_metadata",
)
PRIVATE = ("_flash_attn_forward", "_flash_attn_backward")
_modules: dict[str, ModuleType] = {}


def interface(flavour: str) -> ModuleType:
    """The interface module of a flavour."""
    if flavour not in INTERFACES:
        raise HubError(f"no such flavour: {flavour!r} (there are: {', '.join(INTERFACES)})")
    return importlib.import_module(INTERFACES[flavour])


def export(namespace: MutableMapping[str, Any], flavour: str) -> None:
    """Put the functions of a flavour into a module's namespace, and its interface as a submodule."""
    module = interface(flavour)
    names = [name for name in (*PUBLIC, *PRIVATE) if hasattr(module, name)]
    namespace.update({name: getattr(module, name) for name in names})
    namespace["flash_attn_interface"] = module
    namespace["__version__"] = UPSTREAM_VERSION
    namespace["__all__"] = ["flash_attn_interface", *(name for name in names if name in PUBLIC)]
    # `from <kernel>.flash_attn_interface import ...` finds the same module.
    sys.modules[f"{namespace['__name__']}.flash_attn_interface"] = module


def kernel(flavour: str) -> ModuleType:
    """The module that the override gives for a flavour; the same object every time."""
    if flavour not in _modules:
        module = ModuleType(f"flash_attn3_sm121_kernel_{flavour}", f"FlashAttention-3 ({flavour}) of flash_attn3_sm121")
        module.__path__ = []
        export(vars(module), flavour)
        sys.modules[module.__name__] = module
        _modules[flavour] = module
    return _modules[flavour]
