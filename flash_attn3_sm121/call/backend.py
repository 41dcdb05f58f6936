"""Which backend is forced, and by whom: a context manager, a process-wide setting, the environment. In that order.

    with use_backend("sdpa"):      # this thread (or async task) only, and the backward of the calls made in it
        ...
    set_backend("sdpa")            # the whole process, until set_backend(None)
    FLASH_ATTN3_BACKEND=sdpa       # read once, at the first call

Forcing a backend that cannot serve a call raises BackendError with the reason; it never falls through in silence.
A `torch.compile`d function asks when it runs, not when it is compiled.

torch runs the backward of CUDA tensors in threads of its own, outside of every block. The backward of an eager call
therefore uses the block of its forward; the backward of a compiled function sees the process and the environment only.
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
    """Force a backend for the calls within a `with` block, in this thread only, and for the backward of these calls.

    Args:
        name: "native", "flex" or "sdpa"; None or "auto" leaves the choice open within the block.

    Raises:
        UsageError: no backend has this name.
        BackendError: by the calls, where the backend cannot serve them.
    """
    parse_backend(name, origin="use_backend")
    token = _SCOPED.set(name or "auto")
    try:
        yield
    finally:
        _SCOPED.reset(token)


def scoped() -> str | None:
    """The name that the innermost `use_backend` block of this thread gave, or None outside of such blocks.

    A forward call keeps it for its backward, which may run in another thread.
    """
    return _SCOPED.get()


def within(scope: str | None) -> contextlib.AbstractContextManager[None]:
    """A `use_backend` block with a name that `scoped` returned; for None, no block: this thread's own choice holds."""
    return contextlib.nullcontext() if scope is None else use_backend(scope)


def set_backend(name: str | None) -> None:
    """Force a backend for the whole process.

    Args:
        name: "native", "flex" or "sdpa"; None or "auto" leaves the choice open again.

    Raises:
        UsageError: no backend has this name.
    """
    global _override_impl
    parse_backend(name, origin="set_backend")
    _override_impl = name


def requested() -> str | None:
    """The name in force in this thread, as it was given; None where there is none and the environment decides."""
    scoped = _SCOPED.get()
    return scoped if scoped is not None else _override_impl
