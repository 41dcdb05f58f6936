"""vLLM's FlashAttention backend over our kernels: `vllm serve MODEL --attention-backend CUSTOM`.

On 12.1 vLLM's own backend takes FlashAttention-2, without attention sinks and without an fp8 cache. `Backend` is that
backend's file, loaded a second time with our functions under the names that it calls; vLLM's own stays as it is.
vLLM finds `register` by its entry point, in each of its processes.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from collections.abc import Callable
from typing import Any

from flash_attn3_sm121.errors import BackendError, CallError

FILE = "vllm.v1.attention.backends.flash_attn"
COPY = f"{__name__}_copy"


def register() -> None:
    """Give vLLM's name CUSTOM to `Backend`, if nobody else has it. vLLM starts, whatever its version is."""
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        taken = AttentionBackendEnum.CUSTOM.is_overridden()
    except (ImportError, AttributeError) as error:
        logging.getLogger(__name__).info("no attention backend of ours in this vLLM (0.33 is expected): %s", error)
        return
    if not taken:
        register_backend(AttentionBackendEnum.CUSTOM, f"{__name__}.Backend")


def _version(requires_alibi: bool = False, **_: Any) -> int:
    """The generation of FlashAttention, for everything that a layer may ask for."""
    if requires_alibi:
        raise CallError("FlashAttention-3 has no ALiBi", hint="serve this model without --attention-backend CUSTOM")
    return 3


def _attend(*, num_splits: int = 0, **options: Any) -> Any:
    """vLLM's upper bound of splits goes with its scheduler's metadata; without these, 0 lets the kernels choose."""
    from flash_attn3_sm121.hub.vllm_interface import flash_attn_varlen_func

    return flash_attn_varlen_func(num_splits=1 if num_splits == 1 else 0, **options)


OURS: dict[str, Callable[..., Any]] = {
    "get_flash_attn_version": _version,
    "is_fa_version_supported": lambda version: version == 3,
    "flash_attn_supports_kv_cache_dtype": lambda name="fp8_e4m3", **_: name != "fp8_e5m2",
    "flash_attn_supports_sinks": lambda: True,
    "flash_attn_varlen_func": _attend,
    "get_scheduler_metadata": lambda **_: None,
}


@functools.cache
def _backend() -> type:
    spec = importlib.util.find_spec(FILE)
    if spec is None or spec.loader is None:
        raise BackendError(f"this vLLM has no {FILE}", hint="use vLLM 0.33")
    spec.name = spec.loader.name = COPY  # type: ignore[attr-defined]
    module = sys.modules[COPY] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = sorted(OURS.keys() - vars(module).keys())
    if missing:
        raise BackendError(f"{FILE} of this vLLM does not call {', '.join(missing)}", hint="use vLLM 0.33")
    vars(module).update(OURS)
    module.FlashAttentionImpl.supports_dcp = False
    # A reference window needs FlashAttention-4; that each batch gives the same bits was not tried.
    no = {name: classmethod(lambda cls: False) for name in ("supports_rswa", "supports_batch_invariance")}
    own = {"get_name": staticmethod(lambda: "CUSTOM"), "__module__": __name__, **no}
    return type("Backend", (module.FlashAttentionBackend,), own)


def __getattr__(name: str) -> type:
    if name == "Backend":
        return _backend()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
