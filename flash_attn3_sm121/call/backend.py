"""Which backend is forced, and by whom: a context manager, a process-wide setting, the environment. In that order.

    with use_backend("sdpa"):      # this thread (or async task) only, and the backward of the calls made in it
        ...
    set_backend("sdpa")            # the whole process, until set_backend(None)
    FLASH_ATTN3_BACKEND=sdpa       # read once, at the first call

Forcing a backend that cannot serve a call raises BackendError with the reason; it never falls through in silence.
A `torch.compile`d function asks when it runs, not when it is compiled.

torch runs the backward of CUDA tensors in threads of its own, which no block reaches: an eager call's backward takes
the block of its forward along; the backward of a compiled function knows only the other two.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

from flash_attn3_sm121.call.facts import parse_backend

_SCOPED: contextvars.ContextVar[str | None] = contextvars.ContextVar("flash_attn3_backend", default=None)

# Process-wide. A plain module attribute on purpose: nanochat's tests set `module._override_impl = "sdpa"`.
_override_impl: str | None = None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend for the calls within the block, in this thread only, and for their backward, wherever that runs.

    None or "auto" chooses freely again.
    """
    parse_backend(name, origin="use_backend")
    token = _SCOPED.set(name or "auto")
    try:
        yield
    finally:
        _SCOPED.reset(token)


def scoped() -> str | None:
    """What the innermost block of this thread says, for a backward to take along; None outside of blocks."""
    return _SCOPED.get()


def within(scope: str | None) -> contextlib.AbstractContextManager[None]:
    """The block that `scoped()` told of, or none: then what holds in this thread holds."""
    return contextlib.nullcontext() if scope is None else use_backend(scope)


def set_backend(name: str | None) -> None:
    """Force a backend for the whole process; None or "auto" chooses freely again."""
    global _override_impl
    parse_backend(name, origin="set_backend")
    _override_impl = name


def requested() -> str | None:
    """The raw name in force in this thread, or None where nothing was said (the environment then decides)."""
    scoped = _SCOPED.get()
    return scoped if scoped is not None else _override_impl
