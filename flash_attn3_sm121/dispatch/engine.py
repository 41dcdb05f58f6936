"""The engine: validate -> decide -> run, with the first two remembered for every class of call.

One Engine serves the process (`engine()`); tests build their own with other libraries, devices and settings.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121 import flex
from flash_attn3_sm121.call import backend as backends
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.facts import (
    CallFacts,
    DeviceFacts,
    Settings,
    device_facts,
    of_backward,
    of_forward,
    parse_backend,
)
from flash_attn3_sm121.call.validation import check_backward, check_combine, check_forward
from flash_attn3_sm121.dispatch import canary, python_backend
from flash_attn3_sm121.dispatch.classes import (
    BACKWARD_SCALARS,
    BACKWARD_TENSORS,
    FORWARD_SCALARS,
    FORWARD_TENSORS,
    class_of,
    normalised_window,
    shapes_of,
)
from flash_attn3_sm121.dispatch.decide import Decision, NativeState, decide, pick_build
from flash_attn3_sm121.dispatch.python_backend import BackwardResult, Computes, Gradients
from flash_attn3_sm121.errors import BackendError, NativeLoadError
from flash_attn3_sm121.native import library as native

MAX_PLANS = 4096


@dataclass(kw_only=True, slots=True)
class Plan:
    """What was decided for a class of calls: `ops` where native serves it, else `run`."""

    decision: Decision
    ops: native.LoadedOps | None = None
    may_split: bool = True
    valid: set[Any] = field(default_factory=set)  # the shapes that passed, where no kernel checks them
    run: Computes | None = None


class Engine:
    """Serves calls with the backends of one install. Thread-safe: plans are built under a lock, then only read."""

    def __init__(
        self,
        *,
        settings: Settings,
        libraries: Callable[[], tuple[native.Library, ...]] = native.installed,
        gather: Callable[[torch.device], DeviceFacts] = device_facts,
    ) -> None:
        self.settings = settings
        self._libraries = libraries
        self._gather = gather
        self._plans: dict[Any, Plan] = {}
        self._short: dict[Any, native.Op | None] = {}
        self._lock = threading.RLock()
        self._verified: set[tuple[torch.device, str, str]] = set()
        self._turned_off: dict[torch.device, str] = {}
        self._warned: set[str] = set()

    # -- deciding

    def forced(self) -> str | None:
        """The backend that is forced in this thread, if any."""
        raw = backends.requested()
        return self.settings.backend if raw is None else parse_backend(raw, origin="backend override")

    def device_facts(self, device: torch.device) -> DeviceFacts:
        return self._gather(device)

    def native_state(self, device: torch.device) -> NativeState:
        """What is known about the native libraries, as far as a device is concerned."""
        found = self._libraries()
        errors = {library.facts.family: str(library.error) for library in found if library.error is not None}
        return NativeState(
            builds=tuple(library.facts for library in found),
            load_errors=errors,
            turned_off=self._turned_off.get(device),
            allow_proxy=self.settings.allow_proxy,
        )

    def decision(self, device: torch.device, call: CallFacts) -> Decision:
        """The choice for a call, without running or loading anything."""
        facts = self.device_facts(device)
        refusal, preferred = flex_opinion(call, facts)
        return decide(
            device=facts,
            native=self.native_state(device),
            call=call,
            flex_refusal=refusal,
            flex_preferred=preferred,
            forced=self.forced(),
        )

    def library_for(self, device: torch.device) -> native.Library | None:
        """The library that serves a device at all, whatever the call."""
        build = pick_build(self._gather(device), self.native_state(device))
        if isinstance(build, str):
            return None
        return next(library for library in self._libraries() if library.facts is build)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _plan(self, device: torch.device, dtype: torch.dtype, call: CallFacts) -> tuple[Plan, bool]:
        """A plan, and whether it may be remembered. Loads the library and sends the canary where needed."""
        while True:  # a failed load and a failed canary each turn native off, so this ends
            decision = self.decision(device, call)
            if decision.backend is None:
                raise BackendError(
                    f"the backend {decision.forced} was asked for and cannot serve this call\n{decision}",
                    hint="leave the choice open (backend auto), or ask for sdpa",
                )
            if decision.backend != "native":
                return Plan(decision=decision, run=python_backend.load(decision.backend)), True
            library = self.library_for(device)
            assert library is not None  # decide said so
            try:
                ops = library.ops()
            except NativeLoadError as error:
                if decision.forced == "native":
                    raise
                self._warn_once(f"flash_attn3_sm121: {error}\nThe fallback is used instead.")
                continue
            sent = self._send_canary(device, dtype, call, library.facts.family, ops)
            if sent is not None:
                plan = Plan(decision=decision, ops=ops, may_split="split" in library.facts.features)
                return plan, sent

    def _send_canary(
        self, device: torch.device, dtype: torch.dtype, call: CallFacts, family: str, ops: native.LoadedOps
    ) -> bool | None:
        """True: native may serve and that may be remembered; False: not tried yet; None: native was turned off."""
        key = (device, family, call.direction)
        if not self.settings.canary or key in self._verified:
            return True
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # comparing needs a synchronisation, which a capture forbids: try again later
        fallback = python_backend.load("sdpa")
        dims = (call.head_dim, call.head_dim_v)
        with torch.inference_mode(False), torch.no_grad():
            if call.direction == "forward":
                text = canary.run_forward(ops, fallback.forward, device=device, dtype=dtype, dims=dims)
            else:
                text = canary.run_backward(
                    ops, fallback.forward, fallback.backward, device=device, dtype=dtype, dims=dims
                )
        if text is None:
            self._verified.add(key)
            return True
        reason = f"the canary found wrong results on {device} in the {call.direction} of family {family} ({text})"
        self._turned_off[device] = reason
        self._plans.clear()
        self._short.clear()
        self._warn_once(
            f"flash_attn3_sm121: {reason}. Native kernels are OFF on this device and the fallback is used; please "
            "report the output of `flash-attn3 doctor`. FLASH_ATTN3_CANARY=0 skips this check."
        )
        return None

    def _settle(self, key: Any, args: ForwardArgs | BackwardArgs) -> Plan:
        """Decide for a class of calls that was not met before."""
        with self._lock:
            if isinstance(args, ForwardArgs):
                check_forward(args)
                call = of_forward(args)
            else:
                check_backward(args)
                call = of_backward(args)
            plan, settled = self._plan(args.q.device, args.q.dtype, call)
            if settled:
                if len(self._plans) >= MAX_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
            return plan

    def _validate(self, plan: Plan, tensors: tuple[Tensor | None, ...], args: ForwardArgs | BackwardArgs) -> None:
        """Kernels check shapes by themselves, in C++. For the others it is done here, once for each set of shapes."""
        shapes = shapes_of(tensors, args.max_seqlen_q, args.max_seqlen_k)
        if shapes in plan.valid:
            return
        if isinstance(args, ForwardArgs):
            check_forward(args)
        else:
            check_backward(args)
        if len(plan.valid) >= MAX_PLANS:
            plan.valid.clear()
        plan.valid.add(shapes)

    # -- running

    def forward(self, args: ForwardArgs) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """(out, lse, out_accum, lse_accum); the last two are None unless a native kernel split the keys."""
        tensors = FORWARD_TENSORS(args)
        try:
            key = class_of(args, tensors, FORWARD_SCALARS(args))
        except AttributeError:
            check_forward(args)  # says which argument is no tensor
            raise
        plan = self._plans.get(key) or self._settle(key, args)
        if plan.ops is not None:
            return self._native_forward(plan, plan.ops, args, tensors)
        self._validate(plan, tensors, args)
        assert plan.run is not None
        return python_backend.forward(plan.run, args)

    def short_way(self, key: Any) -> native.Op | None:
        """The op for a class of plain calls that was settled to go straight to it, if so."""
        return self._short.get((key, backends.requested()))

    def settle_short_way(self, key: Any, args: ForwardArgs) -> None:
        """After a plain call took the long way: whether the next of its class need not."""
        key = (key, backends.requested())
        if key in self._short:
            return
        plan = self._plans.get(class_of(args, FORWARD_TENSORS(args), FORWARD_SCALARS(args)))
        if plan is not None and type(args.window_left) is int and type(args.window_right) is int:
            op = None
            if plan.ops is None:
                assert plan.run is not None
                args.window_left, args.window_right = normalised_window(args)
                op = plan.run.short_way(args)
            elif plan.may_split or args.num_splits == 1:
                op = plan.ops.fwd
            if len(self._short) >= MAX_PLANS:
                self._short.clear()
            self._short[key] = op

    def _native_forward(
        self, plan: Plan, ops: native.LoadedOps, args: ForwardArgs, tensors: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        if args.k_new is not None and self.settings.check_cache:
            assert args.seqused_k is not None  # validated
            cu = args.cu_seqlens_k_new
            new = args.k_new.shape[1] if cu is None else cu[1:] - cu[:-1]
            native.assert_room(args.k, args.page_table, args.seqused_k, new)
            if args.rotary_cos is not None:
                native.assert_angles(args, new)
        if args.num_splits < 1 and not plan.may_split:
            args.num_splits = 1
        if args.scheduler_metadata is not None and not native.is_native_metadata(args.scheduler_metadata):
            args.scheduler_metadata = None  # a fallback's zeros would be taken at their word
        for tensor in tensors:
            if tensor is not None and tensor.stride(-1) != 1:
                native.make_contiguous(args)
                break
        try:
            out, lse, out_accum, lse_accum = ops.fwd(*native.FORWARD_POSITIONAL(args))
        except RuntimeError as error:
            other = self._instead(error)
            check_forward(args)
            return python_backend.forward(other, args)
        if args.seqused_q is not None:
            native.blank_unused_rows(out, lse, args)
        return out, lse, out_accum, lse_accum

    def backward(self, args: BackwardArgs, into: Gradients | None = None) -> BackwardResult:
        """The gradients, written into `into` where given, else fresh."""
        tensors = BACKWARD_TENSORS(args)
        key = class_of(args, tensors, BACKWARD_SCALARS(args))
        plan = self._plans.get(key) or self._settle(key, args)
        if plan.ops is None:
            self._validate(plan, tensors, args)
            assert plan.run is not None
            return python_backend.backward(plan.run, args, into)
        assert plan.ops.bwd is not None  # decide saw that the library lists backward
        native.make_contiguous(args)
        dq, dk, dv = into or (_fresh(args.q), _fresh(args.k), _fresh(args.v))
        native.blank_unused_gradients(dq, dk, dv, args)
        try:
            _, _, _, softmax_d, *_ = plan.ops.bwd(*native.backward_positional(args, dq, dk, dv))
        except RuntimeError as error:
            other = self._instead(error)
            check_backward(args)
            return python_backend.backward(other, args, into)
        return BackwardResult(dq=dq, dk=dk, dv=dv, softmax_d=softmax_d)

    def _instead(self, error: RuntimeError) -> Computes:
        """Who serves a call whose tensors kernels cannot read; an error about anything else is raised again."""
        if not native.is_unreadable(error):
            raise error
        if self.forced() == "native":
            raise BackendError(
                f"the backend native was asked for and cannot serve this call\n{error}",
                hint="pass .clone() copies of such tensors, or leave the choice open (backend auto)",
            ) from error
        self._warn_once(f"flash_attn3_sm121: {error}. The fallback serves such calls; .clone() copies avoid it.")
        return python_backend.load("sdpa")

    def combine(
        self, out_partial: Tensor, lse_partial: Tensor, out: Tensor | None, out_dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        """Merge partial results over their first dimension."""
        check_combine(out_partial, lse_partial, out)
        merged, lse = self._combined(out_partial, lse_partial, out, out_dtype)
        if out is not None and merged.data_ptr() != out.data_ptr():  # a kernel pads head dims that 4 does not divide
            merged = out.copy_(merged)
        return merged, lse

    def _combined(
        self, out_partial: Tensor, lse_partial: Tensor, out: Tensor | None, out_dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        ops = self.native_ops(out_partial.device)
        if ops is not None and ops.fwd_combine is not None:
            if lse_partial.stride(-2) != 1:
                lse_partial = lse_partial.transpose(-1, -2).contiguous().transpose(-1, -2)
            try:
                merged, lse = ops.fwd_combine(out_partial, lse_partial, out, out_dtype)
                return merged, lse
            except RuntimeError as error:
                self._instead(error)
        fallback = importlib.import_module("flash_attn3_sm121.fallback")
        merged, lse = fallback.combine(out_partial, lse_partial, out, out_dtype)
        return merged, lse

    def scheduler_metadata(self, call: tuple[Any, ...]) -> Tensor:
        """The opaque vector for the arguments of upstream's op; zeros of its length where no kernel would read it."""
        seqused_k: Tensor = call[8]
        ops = self.native_ops(seqused_k.device)
        if ops is not None:
            return native.mark_native_metadata(ops.get_scheduler_metadata(*call))
        return torch.zeros(self.metadata_length(call), dtype=torch.int32, device=seqused_k.device)

    def metadata_length(self, call: tuple[Any, ...]) -> int:
        """How long that vector is; a device that is no GPU counts as an old one."""
        capability = self._gather(call[8].device).capability
        return native.metadata_length(call, arch=0 if capability is None else capability[0] * 10 + capability[1])

    def native_ops(self, device: torch.device) -> native.LoadedOps | None:
        """The loaded ops for work that is not attention itself (combine, metadata), or None: use the fallback."""
        forced = self.forced()
        if forced not in (None, "native"):
            return None
        library = self.library_for(device)
        if library is None or (library.error is not None and forced is None):
            return None
        try:
            return library.ops()
        except NativeLoadError as error:
            if forced == "native":
                raise
            self._warn_once(f"flash_attn3_sm121: {error}\nThe fallback is used instead.")
            return None


def _fresh(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def flex_opinion(call: CallFacts, device: DeviceFacts) -> tuple[str | None, bool]:
    """(why FlexAttention refuses or None, whether it is measured to be faster)."""
    refusal = flex.refusal(call, device, flex.software())
    return refusal, refusal is None and flex.preferred(call, device)


@functools.cache
def engine() -> Engine:
    """The process's engine, made at the first call: that is when the environment is read."""
    return Engine(settings=Settings.from_environ(os.environ))
