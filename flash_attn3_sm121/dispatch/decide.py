"""The choice of a backend: a pure function of (device facts, build facts, call facts, what was forced).

It returns a Decision that names the backend and, for every backend that was passed over, why. That text is what a
person reads in `explain` and in the error of a forced backend that cannot serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flash_attn3_sm121.arch import KV8_SINCE, Image, capability
from flash_attn3_sm121.call.facts import BACKENDS, FEATURE_WORDS, CallFacts, DeviceFacts
from flash_attn3_sm121.dispatch import remedy
from flash_attn3_sm121.native.buildfacts import BuildFacts

# Features of a call that a library must list by name; others need nothing of it.
_LISTED = (
    "local", "softcap", "varlen", "paged", "append", "split", "packgqa", "chunk", "qv", "sinks", "dlse", "deterministic"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A backend that does not serve a call, and why."""

    backend: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The backend that serves a call, and why each other one does not.

    `backend` is None only when one was forced and refuses. Where it is "native", `build` is the library that serves,
    and `code` the machine code in it that would run. `remedy` is set where native refuses for nothing but what its
    library was built with: the command that builds a wheel whose kernels serve the call.
    """

    backend: str | None
    forced: str | None
    refusals: tuple[Refusal, ...]
    family: str | None = None
    code: str | None = None
    build: BuildFacts | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        chosen = self.backend or "none"
        if self.backend == "native":
            chosen = f"native (family {self.family}, machine code {self.code})"
        how = f" (forced: {self.forced})" if self.forced else ""
        lines = [f"backend: {chosen}{how}"]
        for refusal in self.refusals:
            lines.append(f"  not {refusal.backend}: {refusal.reason}")
            if refusal.backend == "native" and self.remedy:
                lines.append(f"    a wheel whose kernels serve it: {self.remedy}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class NativeState:
    """What is known of the native libraries of this install, beyond their build facts."""

    builds: tuple[BuildFacts, ...] = ()
    load_errors: Mapping[str, str] | None = None  # family -> cause
    turned_off: str | None = None  # why native is off on this device (a failed canary)
    allow_proxy: bool = False


def pick_build(device: DeviceFacts, native: NativeState) -> BuildFacts | str:
    """The library that serves a device, or why none does. Nothing about the call is looked at."""
    if device.type != "cuda" or device.capability is None:
        return f"it runs on CUDA devices and the tensors are on {device.type}"
    if device.rocm:
        return "it runs on NVIDIA devices and this torch is built for ROCm"
    if native.turned_off is not None:
        return native.turned_off
    if not native.builds:
        return "this install has no kernel library (a wheel without machine code)"
    major, minor = device.capability
    name = f"{major}.{minor}"
    if native.allow_proxy:
        for build in native.builds:
            if build.proxy and build.code_for(major, minor) is not None:
                return build
    row = capability(major, minor)
    if row is None:
        return f"no kernel family is known for capability {name}"
    have = ", ".join(sorted(build.family for build in native.builds if not build.proxy)) or "none"
    found = next((b for b in native.builds if b.family == str(row.family) and not b.proxy), None)
    if found is None:
        return f"capability {name} wants the family {row.family} and this install has {have}"
    if found.code_for(major, minor) is None:
        code = ", ".join((*found.images, *found.ptx)) or "none"
        return f"the {found.family} library holds machine code {code}, which capability {name} does not run"
    return found


def _shape_refusal(build: BuildFacts, call: CallFacts) -> str | None:
    dims = build.backward_head_dims if call.direction == "backward" else build.head_dims
    largest = max(dims, default=0)
    dim, dim_v = call.head_dim, call.head_dim_v
    listed = ", ".join(str(d) for d in dims) or "none"
    if dim % 8 or dim_v % 8:
        return f"head dimensions must be multiples of 8, these are {dim} and {dim_v}"
    if dim == dim_v:
        kind = " with a backward" if call.direction == "backward" else ""
        return None if dim <= largest else f"head dimension {dim} is larger than those built{kind} ({listed})"
    if "diff_headdim" not in build.features:
        return f"dv != d ({dim_v} != {dim}) is not among the features of the {build.family} library"
    if call.direction == "backward":
        larger = max(dim, dim_v)
        return None if larger <= largest else f"head dimension {larger} is not built with a backward ({listed})"
    if not ((128 < dim <= 192 and 96 < dim_v <= 128) or (dim <= 64 and dim_v <= 512)):
        return f"the kernels have no tile for d = {dim} with dv = {dim_v}"
    if build.family != "sm90" and dim_v > 256 and "qv" not in build.features:
        return (
            f"the {build.family} library (profile {build.profile}) is built without: qv, whose kernels dv > 256 takes"
        )
    if build.family != "sm90":
        built = (64 if dim <= 64 else 192) in dims
        return None if built else f"dv != d takes head dimension 64 or 192, built are {listed}"
    if dim > largest:
        return f"head dimension {dim} is larger than those built ({listed})"
    # A V wider than the kernel of d has 16-bit kernels of its own, for d up to 64.
    room = min(built for built in dims if built >= dim)
    if dim_v > room and (call.dtype == "e4m3" or room != 64):
        return f"dv = {dim_v} is more than the {call.dtype} kernel for d = {dim} has room for: {room}"
    return None


def _feature_refusal(build: BuildFacts, call: CallFacts) -> str | None:
    if call.direction == "backward":
        if "chunk" in call.features:
            return "upstream's backward does not know attention_chunk"
        if build.family == "sm90" and call.features & {"seqused_q", "seqused_k"}:
            return "Hopper's backward reads rows past seqused_q and seqused_k, and its mended kernels have not run"
        if build.family == "sm90" and "deterministic" in call.features and max(call.head_dim, call.head_dim_v) > 192:
            return "Hopper's deterministic backward stops at head dimension 192"
    elif "softcap" in call.features and call.head_dim != call.head_dim_v and build.family != "sm90":
        return "dv != d with softcap is not among the kernels below Hopper"
    if "rotary" in call.features and call.dtype == "e4m3" and build.family == "sm90":
        return "upstream's fp8 kernels turn keys by vectors of 16, which half a rotary dim need not be a multiple of"
    missing = [word for word in _LISTED if word in call.features and word not in build.features]
    if missing:
        names = ", ".join(FEATURE_WORDS[word] for word in missing)
        return f"the {build.family} library (profile {build.profile}) is built without: {names}"
    if "qv" in call.features and (call.head_dim > 64 or call.head_dim_v < 256):
        return f"qv needs d <= 64 and dv >= 256, these are {call.head_dim} and {call.head_dim_v}"
    return None


def native_refusal(device: DeviceFacts, native: NativeState, call: CallFacts) -> str | BuildFacts:
    """The library that serves this call, or why native does not."""
    build = _usable_build(device, native)
    if isinstance(build, str):
        return build
    return _device_refusal(device, build, call) or call_refusal(build, call) or build


def _usable_build(device: DeviceFacts, native: NativeState) -> BuildFacts | str:
    """The library for a device, if it loads and fits there, or why there is none."""
    build = pick_build(device, native)
    if isinstance(build, str):
        return build
    cause = (native.load_errors or {}).get(build.family)
    if cause is not None:
        return f"the {build.family} library cannot be loaded: {cause}"
    if device.smem_limit is not None and device.smem_limit < build.smem_limit:
        return (
            f"the {build.family} kernels may ask for {build.smem_limit} bytes of shared memory a block "
            f"and {device.name or 'this device'} gives {device.smem_limit}"
        )
    return build


def _device_refusal(device: DeviceFacts, build: BuildFacts, call: CallFacts) -> str | None:
    """Why a device cannot run kernels that its library may hold, or None."""
    major, minor = device.capability or (0, 0)
    since = ".".join(map(str, KV8_SINCE))
    if call.dtype_kv == "e4m3" and (major, minor) < KV8_SINCE:
        return f"capability {major}.{minor} cannot convert e4m3: {since} and later can"
    code = build.code_for(major, minor)
    held = build.family != "sm90" and {"kv8", "fp8"} & set(build.features)
    if call.dtype_kv == "e4m3" and held and code and not Image.parse(code).converts_e4m3:
        return (
            f"capability {major}.{minor} runs {code} of the {build.family} library, and its kernels for keys and "
            f"values in e4m3 are code for {since} and later"
        )
    return None


def multiplies_fp8(build: BuildFacts, call: CallFacts) -> bool:
    """Whether the kernels multiply a call's Q, K and V in e4m3 as they are. A Q that is turned first has 16 bits."""
    held = "fp8" in build.features and "rotary" not in call.features
    return call.dtype == "e4m3" and (build.family == "sm90" or held)


def appends(build: BuildFacts, call: CallFacts) -> bool:
    """Whether the kernels that serve a call write new keys. Where they do not, they are written before."""
    own = call.dtype_kv == "e4m3" or "qv" in call.features or call.head_dim_v > 256
    return build.family == "sm90" or not own


def _widened_refusal(build: BuildFacts, call: CallFacts) -> str | None:
    """Why the mma.sync kernels for K and V in e4m3 do not serve a call. An fp8 Q is bf16 where none multiplies it."""
    dtype = "bf16" if call.dtype == "e4m3" else call.dtype
    if call.direction == "backward":
        return "there is no fp8 backward"
    if "kv8" not in build.features and not multiplies_fp8(build, call):
        return f"the {build.family} library (profile {build.profile}) is built without: keys and values in e4m3"
    if dtype not in build.dtypes:
        return f"dtype {dtype} is not among those of the {build.family} library ({', '.join(build.dtypes)})"
    if call.head_dim != call.head_dim_v:
        return (
            f"keys and values in e4m3 have one head dimension in the kernels, not {call.head_dim} and {call.head_dim_v}"
        )
    return None


def call_refusal(build: BuildFacts, call: CallFacts) -> str | None:
    """Why a library does not serve a call, or None where it does. Shapes first: the cheapest to explain."""
    if call.dtype_kv == "e4m3" and build.family != "sm90":
        return _widened_refusal(build, call) or _shape_refusal(build, call) or _feature_refusal(build, call)
    if call.dtype not in build.dtypes:
        return f"dtype {call.dtype} is not among those of the {build.family} library ({', '.join(build.dtypes)})"
    if call.dtype_kv != call.dtype:
        return f"mixed dtypes (q {call.dtype}, k and v {call.dtype_kv}) are not in the kernels"
    if call.direction == "backward" and call.dtype == "e4m3":
        return "there is no fp8 backward"
    if call.direction == "backward" and "backward" not in build.features:
        return f"the {build.family} library (profile {build.profile}) is built without backward"
    return _shape_refusal(build, call) or _feature_refusal(build, call)


def decide(
    *,
    device: DeviceFacts,
    native: NativeState,
    call: CallFacts,
    flex_refusal: str | None,
    forced: str | None = None,
) -> Decision:
    """Choose a backend: the forced one, else native where it serves the call, else sdpa, which serves every valid call.

    FlexAttention is never chosen unasked: on a CPU sdpa was faster in every workload measured (docs/performance.md).

    Args:
        flex_refusal: why FlexAttention cannot serve the call, or None.
        forced: the backend that was asked for, or None.
    """
    build = _usable_build(device, native)
    too_old = None if isinstance(build, str) else _device_refusal(device, build, call)
    refused_by_native = build if isinstance(build, str) else too_old or call_refusal(build, call)
    remedied = None
    reasons: dict[str, str] = {}
    if refused_by_native is not None:
        reasons["native"] = refused_by_native
        remedied = None if isinstance(build, str) or too_old else remedy.command(build, call, call_refusal)
    if flex_refusal is not None:
        reasons["flex"] = flex_refusal
    if forced is not None:
        backend = None if forced in reasons else forced
        otherwise = dict.fromkeys(BACKENDS, f"{forced} was asked for")
    elif "native" not in reasons:
        backend = "native"
        otherwise = dict.fromkeys(BACKENDS, "native serves this call")
    else:
        backend = "sdpa"
        otherwise = {"flex": "not measured to be faster here; it can be asked for"}
    refused = (*reasons, *(name for name in BACKENDS if name in otherwise and name not in reasons and name != backend))
    refusals = tuple(Refusal(backend=name, reason=reasons.get(name) or otherwise[name]) for name in refused)
    if backend == "native" and not isinstance(build, str):
        code = build.code_for(*(device.capability or (0, 0)))
        return Decision(backend=backend, forced=forced, refusals=refusals, family=build.family, code=code, build=build)
    return Decision(backend=backend, forced=forced, refusals=refusals, remedy=remedied)
