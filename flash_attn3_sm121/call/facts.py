"""What `decide` is told: facts of the device and of the call, gathered here so that deciding itself stays pure.

The dataclasses need no torch; only the two gathering functions touch it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flash_attn3_sm121.errors import UsageError

if TYPE_CHECKING:
    import torch

    from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs

Direction = Literal["forward", "backward"]
BACKENDS = ("native", "flex", "sdpa")
# Names that other projects use for the same thing (nanochat says 'fa3').
BACKEND_ALIASES = {"fa3": "native", "flash": "native", "fallback": "sdpa", "torch": "sdpa"}
DTYPE_NAMES = {
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float32": "fp32",
    "torch.float64": "fp64",
    "torch.float8_e4m3fn": "e4m3",
}


def parse_backend(text: str | None, *, origin: str) -> str | None:
    """A backend's own name, or None for "choose by yourself"; raises UsageError naming where the text came from."""
    if text is None or text.strip().lower() in ("", "auto"):
        return None
    name = text.strip().lower()
    name = BACKEND_ALIASES.get(name, name)
    if name not in BACKENDS:
        raise UsageError(f"{origin}: expected auto, native, flex or sdpa, found {text!r}")
    return name


def _flag(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = environ.get(name, "").strip().lower()
    if text == "":
        return default
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise UsageError(f"{name}: expected 0 or 1, found {environ[name]!r}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The environment variables that steer the run time, read once."""

    backend: str | None = None
    canary: bool = True
    check_cache: bool = True
    allow_proxy: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        return cls(
            backend=parse_backend(environ.get("FLASH_ATTN3_BACKEND"), origin="FLASH_ATTN3_BACKEND"),
            canary=_flag(environ, "FLASH_ATTN3_CANARY", default=True),
            check_cache=_flag(environ, "FLASH_ATTN3_CHECK_CACHE", default=True),
            allow_proxy=_flag(environ, "FLASH_ATTN3_ALLOW_PROXY", default=False),
        )


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """The device that holds the tensors. `capability` is None where the notion does not exist."""

    type: str
    name: str = ""
    capability: tuple[int, int] | None = None
    smem_limit: int | None = None  # bytes a block may opt in to
    rocm: bool = False


@dataclass(frozen=True, kw_only=True)
class CallFacts:
    """What a call asks for, as far as choosing a backend goes. `features` holds words of FEATURE_WORDS."""

    device_type: str
    dtype: str
    dtype_kv: str
    head_dim: int
    head_dim_v: int
    direction: Direction = "forward"
    features: frozenset[str] = frozenset()


# Words that may stand in CallFacts.features, with what they mean to a reader.
FEATURE_WORDS = {
    "causal": "causal mask",
    "local": "sliding window",
    "chunk": "attention_chunk",
    "softcap": "softcap",
    "varlen": "packed sequences or seqused_* / leftpad",
    "seqused_q": "seqused_q",
    "seqused_k": "seqused_k",
    "paged": "paged KV cache",
    "batch_idx": "cache_batch_idx",
    "append": "new keys and values written into the cache",
    "rotary": "rotary embedding inside the call",
    "split": "num_splits > 1",
    "packgqa": "pack_gqa=True",
    "qv": "qv",
    "sinks": "attention sinks (s_aux)",
    "dlse": "gradient of the LSE",
    "deterministic": "deterministic backward",
}


def facts_of(args: ForwardArgs | BackwardArgs) -> CallFacts:
    """The facts of a validated call."""
    backward = hasattr(args, "dout")
    left, right = args.window_left, args.window_right

    def given(*names: str) -> bool:
        return any(getattr(args, name, None) is not None for name in names)

    present = {
        "causal": args.causal or (right == 0 and left < 0),
        "local": left >= 0 or right > 0,
        "chunk": args.attention_chunk > 0,
        "softcap": args.softcap > 0,
        "varlen": given("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k", "leftpad_k"),
        "seqused_q": given("seqused_q"),
        "seqused_k": backward and given("seqused_k"),
        "paged": given("page_table"),
        "batch_idx": given("kv_batch_idx"),
        "append": given("k_new"),
        "rotary": given("rotary_cos"),
        "split": getattr(args, "num_splits", 1) > 1,
        "packgqa": getattr(args, "pack_gqa", None) is True,
        "qv": given("qv"),
        "sinks": given("s_aux"),
        "dlse": given("dlse"),
        "deterministic": getattr(args, "deterministic", False),
    }
    return CallFacts(
        device_type=args.q.device.type,
        dtype=DTYPE_NAMES.get(str(args.q.dtype), str(args.q.dtype)),
        dtype_kv=DTYPE_NAMES.get(str(args.k.dtype), str(args.k.dtype)),
        head_dim=args.q.shape[-1],
        head_dim_v=args.v.shape[-1],
        direction="backward" if backward else "forward",
        features=frozenset(word for word, there in present.items() if there),
    )


def device_named(text: str | torch.device) -> torch.device:
    """The device of that name. Raises UsageError where torch knows no such name, or sees no such device."""
    import torch

    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UsageError(f"device: {text!r} is not a device", hint="cpu, cuda or cuda:1, for example") from error
    count = torch.cuda.device_count() if device.type == "cuda" else int(torch.backends.mps.is_available())
    if device.type in ("cuda", "mps") and (device.index or 0) >= count:
        raise UsageError(f"device {device}: torch sees no such device here", hint="flash-attn3 doctor says why")
    return device


@functools.cache
def device_facts(device: torch.device) -> DeviceFacts:
    """Ask torch about a device, once. A CUDA device is only looked at when a tensor already lives there."""
    import torch

    if device.type != "cuda":
        return DeviceFacts(type=device.type, name=device.type)
    properties = torch.cuda.get_device_properties(device)
    return DeviceFacts(
        type="cuda",
        name=properties.name,
        capability=(properties.major, properties.minor),
        smem_limit=getattr(properties, "shared_memory_per_block_optin", None),
        rocm=torch.version.hip is not None,
    )
