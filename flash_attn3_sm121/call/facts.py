"""What `decide` is told: facts of the device and of the call, gathered here so that deciding itself stays pure.

The dataclasses need no torch; only the two gathering functions touch it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    features: frozenset[str] = field(default_factory=frozenset)
    num_heads: int = 1
    num_heads_kv: int = 1
    seqlen_q: int | None = None  # None: packed
    seqlen_k: int | None = None


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


def _mask_features(window_left: int, window_right: int, chunk: int, softcap: float, causal: bool) -> set[str]:
    found = set()
    if causal or (window_right == 0 and window_left < 0):
        found.add("causal")
    if window_left >= 0 or window_right > 0:
        found.add("local")
    if chunk > 0:
        found.add("chunk")
    if softcap > 0:
        found.add("softcap")
    return found


def of_forward(args: ForwardArgs) -> CallFacts:
    """The facts of a validated forward call."""
    found = _mask_features(args.window_left, args.window_right, args.attention_chunk, args.softcap, args.causal)
    lengths = (args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_q, args.seqused_k, args.leftpad_k)
    present = {
        "varlen": any(tensor is not None for tensor in lengths),
        "seqused_q": args.seqused_q is not None,
        "paged": args.page_table is not None,
        "batch_idx": args.kv_batch_idx is not None,
        "append": args.k_new is not None,
        "rotary": args.rotary_cos is not None,
        "split": args.num_splits > 1,
        "packgqa": args.pack_gqa is True,
        "qv": args.qv is not None,
        "sinks": args.s_aux is not None,
    }
    found |= {word for word, there in present.items() if there}
    packed_q, packed_k = args.cu_seqlens_q is not None, args.cu_seqlens_k is not None
    seqlen_k = None if packed_k else args.k.shape[1]
    if args.page_table is not None:
        seqlen_k = args.page_table.shape[1] * args.k.shape[1]
    return CallFacts(
        device_type=args.q.device.type,
        dtype=DTYPE_NAMES.get(str(args.q.dtype), str(args.q.dtype)),
        dtype_kv=DTYPE_NAMES.get(str(args.k.dtype), str(args.k.dtype)),
        head_dim=args.q.shape[-1],
        head_dim_v=args.v.shape[-1],
        features=frozenset(found),
        num_heads=args.q.shape[-2],
        num_heads_kv=args.k.shape[-2],
        seqlen_q=None if packed_q else args.q.shape[1],
        seqlen_k=seqlen_k,
    )


def of_backward(args: BackwardArgs) -> CallFacts:
    """The facts of a validated backward call."""
    found = _mask_features(args.window_left, args.window_right, args.attention_chunk, args.softcap, args.causal)
    lengths = (args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_q, args.seqused_k)
    present = {
        "varlen": any(tensor is not None for tensor in lengths),
        "seqused_q": args.seqused_q is not None,
        "seqused_k": args.seqused_k is not None,
        "qv": args.qv is not None,
        "sinks": args.s_aux is not None,
        "dlse": args.dlse is not None,
        "deterministic": args.deterministic,
    }
    found |= {word for word, there in present.items() if there}
    return CallFacts(
        device_type=args.q.device.type,
        dtype=DTYPE_NAMES.get(str(args.q.dtype), str(args.q.dtype)),
        dtype_kv=DTYPE_NAMES.get(str(args.k.dtype), str(args.k.dtype)),
        head_dim=args.q.shape[-1],
        head_dim_v=args.v.shape[-1],
        direction="backward",
        features=frozenset(found),
        num_heads=args.q.shape[-2],
        num_heads_kv=args.k.shape[-2],
        seqlen_q=None if args.cu_seqlens_q is not None else args.q.shape[1],
        seqlen_k=None if args.cu_seqlens_k is not None else args.k.shape[1],
    )


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
