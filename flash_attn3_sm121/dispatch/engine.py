"""The engine: validate, decide, run. The first two are remembered for every class of calls.

One Engine serves the process (`engine()`); tests build their own with other libraries, devices and settings.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121 import flex
from flash_attn3_sm121.call import backend as backends
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.facts import CallFacts, DeviceFacts, Settings, device_facts, facts_of, parse_backend
from flash_attn3_sm121.call.types import fail
from flash_attn3_sm121.call.validation import check_backward, check_combine, check_forward, check_metadata
from flash_attn3_sm121.dispatch import canary, python_backend
from flash_attn3_sm121.dispatch.classes import Tensors, class_of, tensors_of
from flash_attn3_sm121.dispatch.decide import Decision, NativeState, appends, decide, multiplies_fp8, pick_build
from flash_attn3_sm121.dispatch.native_backend import NativePlan, out_of_memory
from flash_attn3_sm121.dispatch.python_backend import BackwardResult, Computes, Gradients, PythonPlan, Results
from flash_attn3_sm121.errors import BackendError, NativeLoadError
from flash_attn3_sm121.native import library as native
from flash_attn3_sm121.native.buildfacts import BuildFacts

Plan = NativePlan | PythonPlan
MAX_PLANS = 4096


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
        self.plans: dict[Any, Plan] = {}  # class of calls -> how it is served
        self._libraries = libraries
        self._gather = gather
        self._lock = threading.RLock()
        self._verified: set[tuple[Any, ...]] = set()
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
        libraries = self._libraries()
        errors = {library.facts.family: str(library.error) for library in libraries if library.error is not None}
        return NativeState(
            builds=tuple(library.facts for library in libraries),
            load_errors=errors,
            turned_off=self._turned_off.get(device),
            allow_proxy=self.settings.allow_proxy,
        )

    def decision(self, device: torch.device, call: CallFacts, facts: DeviceFacts | None = None) -> Decision:
        """The choice for a call, without running or loading anything; `facts` pretends another device."""
        facts = self.device_facts(device) if facts is None else facts
        return decide(
            device=facts,
            native=self.native_state(device),
            call=call,
            flex_refusal=flex.refusal(call, facts, flex.software()),
            forced=self.forced(),
        )

    def plan(self, args: ForwardArgs | BackwardArgs, tensors: Tensors) -> Plan:
        """How the calls of a call's class are served: remembered, or decided now."""
        if not args.softmax_scale >= 0:
            fail(
                f"softmax_scale must be 0 or more, found {args.softmax_scale}: kernels look for a row's largest score "
                "before they scale it",
                hint="for a negative scale pass -q and the scale without its sign",
            )
        try:
            key = class_of(args, tensors)
        except AttributeError:
            _validate(args)  # says which argument is no tensor
            raise
        return self.plans.get(key) or self._decide(key, args)

    def _decide(self, key: Any, args: ForwardArgs | BackwardArgs) -> Plan:
        """Decide for a class of calls that was not met before. Loads the library and sends the canary where needed."""
        with self._lock:
            _validate(args)
            call = facts_of(args)
            device = args.q.device
            while True:  # a failed load and a failed canary each turn native off, so this ends
                decision = self.decision(device, call)
                if decision.backend is None:
                    raise BackendError(
                        f"the backend {decision.forced} was asked for and cannot serve this call\n{decision}",
                        hint="leave the choice open (backend auto), or ask for sdpa",
                    )
                if decision.build is None:
                    self._say_what_the_wheel_lacks(decision)
                    plan: Plan = PythonPlan(
                        decision=decision,
                        backend=python_backend.load(decision.backend),
                        check_cache=self.settings.check_cache,
                    )
                    return self._remember(key, plan)
                ops = self._loaded(decision.build)
                if ops is None:
                    continue
                widened = call.dtype_kv == "e4m3" and not multiplies_fp8(decision.build, call)
                trusted = self._send_canary(device, args.q.dtype, call, decision.build.family, ops, widened=widened)
                if trusted is not None:
                    plan = NativePlan(
                        decision=decision,
                        ops=ops,
                        can_split=_can_split(decision.build, args),
                        check_cache=self.settings.check_cache,
                        appends=appends(decision.build, call),
                        widened=widened,
                        instead=self._instead,
                    )
                    return self._remember(key, plan) if trusted else plan

    def _remember(self, key: Any, plan: Plan) -> Plan:
        if len(self.plans) >= MAX_PLANS:
            self.plans.clear()
        self.plans[key] = plan
        return plan

    def _loaded(self, build: BuildFacts) -> native.LoadedOps | None:
        """The ops of a library; None, with a warning, where it cannot be loaded and native was not asked for."""
        (library,) = (library for library in self._libraries() if library.facts is build)
        try:
            return library.ops()
        except NativeLoadError as error:
            if self.forced() == "native":
                raise
            self._warn_once(f"flash_attn3_sm121: {error}\nThe fallback is used instead.")
            return None

    def _warn_once(self, text: str, *, about: str | None = None) -> None:
        """Warn of something that was not warned of before; `about` tells it apart where the text does not."""
        if (about or text) not in self._warned:
            self._warned.add(about or text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _say_what_the_wheel_lacks(self, decision: Decision) -> None:
        """Once for each reason: a call that nobody sent to the fallback is there for how the wheel was built."""
        if decision.remedy is None or decision.forced is not None:
            return
        (reason,) = (refusal.reason for refusal in decision.refusals if refusal.backend == "native")
        text = f"{reason}. The fallback serves such calls; a wheel whose kernels do: {decision.remedy}"
        self._warn_once(f"flash_attn3_sm121: {text}", about=reason)

    def _send_canary(
        self,
        device: torch.device,
        dtype: torch.dtype,
        call: CallFacts,
        family: str,
        ops: native.LoadedOps,
        *,
        widened: bool = False,
    ) -> bool | None:
        """True: native may serve and that may be remembered; False: not tried yet; None: native was turned off."""
        added = call.features & ({"sinks", "qv"} if call.direction == "forward" else {"dlse", "deterministic"})
        wide = call.head_dim_v > 256  # kernels of their own, as are those that read a qv
        key = (device, dtype, call.dtype_kv, family, call.direction, wide, widened, *added)
        if not self.settings.canary or key in self._verified:
            return True
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # comparing needs a synchronisation, which a capture forbids: try again later
        fallback = python_backend.load("sdpa")
        dims = (call.head_dim, call.head_dim_v)
        with torch.inference_mode(False), torch.no_grad():
            if call.direction == "forward":
                text = canary.run_forward(
                    ops, fallback.forward, device=device, dtype=dtype, dims=dims, sinks="sinks" in added,
                    qv="qv" in added, widened=widened,
                )  # fmt: skip
            else:
                text = canary.run_backward(
                    ops, fallback.forward, fallback.backward, device=device, dtype=dtype, dims=dims,
                    dlse="dlse" in added, deterministic="deterministic" in added,
                )  # fmt: skip
        if text is None:
            self._verified.add(key)
            return True
        reason = f"the canary found wrong results on {device} in the {call.direction} of family {family} ({text})"
        self._turned_off[device] = reason
        self.plans.clear()
        self._warn_once(
            f"flash_attn3_sm121: {reason}. Native kernels are OFF on this device and the fallback is used; please "
            "report the output of `flash-attn3 doctor`. FLASH_ATTN3_CANARY=0 skips this check."
        )
        return None

    # -- running

    def forward(self, args: ForwardArgs) -> Results:
        """Run a forward call.

        Returns:
            (out, lse, out_accum, lse_accum); the last two are None unless a native kernel split the keys.

        Raises:
            CallError, TypeError: the arguments do not fit together.
            BackendError: a forced backend cannot serve the call.
        """
        tensors = tensors_of(args)
        return self.plan(args, tensors).forward(args, tensors)

    def backward(self, args: BackwardArgs, into: Gradients | None = None) -> BackwardResult:
        """The gradients of a forward call, written into `into` where given, else fresh.

        An LSE of shape (1, h, total_q), which upstream returned for packed queries once, is taken like (h, total_q).
        """
        if args.cu_seqlens_q is not None and args.softmax_lse.dim() == 3:
            _validate(args)
            args = replace(args, softmax_lse=args.softmax_lse.squeeze(0))
        tensors = tensors_of(args)
        return self.plan(args, tensors).backward(args, tensors, into)

    def _instead(self, error: RuntimeError) -> Computes:
        """The backend that serves tensors which kernels cannot take; an error about anything else is raised again."""
        full = out_of_memory(error)
        if full is not None:
            raise full from error
        if not native.is_refused(error):
            raise error
        copies = "" if native.is_too_large(error) else "pass .clone() copies of such tensors, or "
        if self.forced() == "native":
            raise BackendError(
                f"the backend native was asked for and cannot serve this call\n{error}",
                hint=f"{copies}leave the choice open (backend auto)",
            ) from error
        avoided = "; .clone() copies avoid it" if copies else ""
        self._warn_once(f"flash_attn3_sm121: {error}. The fallback serves such calls{avoided}.")
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
        ops = self._ops_without_call(out_partial.device)
        # A single part is the whole, and the kernel writes nothing then.
        if ops is not None and ops.fwd_combine is not None and out_partial.numel() and out_partial.shape[0] > 1:
            if out_partial.stride(-1) != 1:
                out_partial = out_partial.contiguous()
            if lse_partial.stride(-2) != 1:  # contiguous() leaves the strides of one row as they are
                rows_last = lse_partial.transpose(-1, -2).clone(memory_format=torch.contiguous_format)
                lse_partial = rows_last.transpose(-1, -2)
            into = out if out is not None and out.stride(-1) == 1 else None
            try:
                merged, lse = ops.fwd_combine(out_partial, lse_partial, into, out_dtype if out is None else out.dtype)
                return merged, lse
            except RuntimeError as error:
                self._instead(error)
        fallback = importlib.import_module("flash_attn3_sm121.fallback")
        merged, lse = fallback.combine(out_partial, lse_partial, out, out_dtype)
        return merged, lse

    def scheduler_metadata(self, call: tuple[Any, ...]) -> Tensor:
        """The opaque vector for the arguments of upstream's op; zeros of its length where no kernel would read it."""
        check_metadata(dict(zip(schemas.METADATA_NAMES, call, strict=True)))
        lengths = _lengths_of(call)
        ops = self._ops_without_call(lengths.device)
        if ops is not None:
            # The library takes the lengths at their word: a cu_seqlens_q of another type, or strided, would lose rows.
            read = (x.to(lengths.device, torch.int32).contiguous() if isinstance(x, Tensor) else x for x in call)
            return native.mark_native_metadata(ops.get_scheduler_metadata(*read), call)
        return torch.zeros(self.metadata_length(call), dtype=torch.int32, device=lengths.device)

    def metadata_length(self, call: tuple[Any, ...]) -> int:
        """How long that vector is; a device that is no GPU counts as an old one."""
        capability = self._gather(_lengths_of(call).device).capability
        return native.metadata_length(call, major=0 if capability is None else capability[0])

    def _ops_without_call(self, device: torch.device) -> native.LoadedOps | None:
        """The loaded ops for work that is not attention itself (combine, metadata), or None: use the fallback."""
        if self.forced() not in (None, "native"):
            return None
        state = self.native_state(device)
        build = pick_build(self._gather(device), state)
        if isinstance(build, str) or (build.family in (state.load_errors or {}) and self.forced() is None):
            return None
        return self._loaded(build)


def _validate(args: ForwardArgs | BackwardArgs) -> None:
    if isinstance(args, ForwardArgs):
        check_forward(args)
    else:
        check_backward(args)


def _can_split(build: BuildFacts, args: ForwardArgs | BackwardArgs) -> bool:
    """Whether a library can do what num_splits asks for; below 1 it leaves the number to the kernels."""
    return "split" in build.features or isinstance(args, BackwardArgs) or args.num_splits == 1


def _lengths_of(metadata_call: tuple[Any, ...]) -> Tensor:
    lengths: Tensor = metadata_call[_SEQUSED_K]
    return lengths


_SEQUSED_K = schemas.METADATA_NAMES.index("seqused_k")


@functools.cache
def engine() -> Engine:
    """The process's engine, made at the first call: that is when the environment is read."""
    return Engine(settings=Settings.from_environ(os.environ))
