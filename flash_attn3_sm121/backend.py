"""Which backend is forced, and by whom: a context manager, a process-wide setting, the environment. In that order.

    with use_backend("sdpa"):      # this thread (or async task) only, and the backward passes started in it
        ...
    set_backend("sdpa")            # the whole process, until set_backend(None)
    FLASH_ATTN3_BACKEND=sdpa       # read once, at the first call

Forcing a backend that cannot serve a call raises BackendError with the reason; it never falls through in silence.
A `torch.compile`d function asks when it runs, not when it is compiled.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator

import torch

from flash_attn3_sm121.facts import parse_backend

_SCOPED: contextvars.ContextVar[str | None] = contextvars.ContextVar("flash_attn3_backend", default=None)

# torch runs the backward of CUDA tensors in threads of its own, where a context variable is not set. What lies in
# torch's thread-local storage goes with a backward pass to whichever thread runs it: (thread that set it, name).
_CARRIED = "flash_attn3_sm121.backend"
_CAN_CARRY = all(hasattr(torch._C, name) for name in ("_stash_obj_in_tls", "_get_obj_in_tls", "_is_key_in_tls"))
_ever_scoped = False

# Process-wide. A plain module attribute on purpose: nanochat's tests set `module._override_impl = "sdpa"`.
_override_impl: str | None = None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend within the block, in this thread and the backward passes started in it; None or "auto" chooses
    freely again."""
    parse_backend(name, origin="use_backend")
    token, before = _SCOPED.set(name or "auto"), _carried()
    _carry((threading.get_ident(), name or "auto"))
    try:
        yield
    finally:
        _SCOPED.reset(token)
        _carry(before)


def _carried() -> tuple[int, str] | None:
    if not _ever_scoped or not torch._C._is_key_in_tls(_CARRIED):
        return None
    found: tuple[int, str] | None = torch._C._get_obj_in_tls(_CARRIED)
    return found


def _carry(what: tuple[int, str] | None) -> None:
    global _ever_scoped
    if _CAN_CARRY:
        torch._C._stash_obj_in_tls(_CARRIED, what)
        _ever_scoped = True


def set_backend(name: str | None) -> None:
    """Force a backend for the whole process; None or "auto" chooses freely again."""
    global _override_impl
    parse_backend(name, origin="set_backend")
    _override_impl = name


def requested() -> str | None:
    """The raw name in force in this thread, or None where nothing was said (the environment then decides)."""
    scoped = _SCOPED.get()
    if scoped is None and _ever_scoped:
        carried = _carried()
        # In the thread that set it the context variable alone counts: another async task may be running there.
        if carried is not None and carried[0] != threading.get_ident():
            return carried[1]
    return scoped if scoped is not None else _override_impl
