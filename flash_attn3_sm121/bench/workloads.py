"""The named workloads, as data, and their arithmetic. Pure: no torch.

FLOPs and bytes are what the mask really asks for (kept query-key pairs; keys that some query of the call may see), not
what an implementation happens to do, so that wasted work shows as a lower rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["dense", "packed", "cache", "paged"]
ITEM = {"e4m3": 1, "bf16": 2, "fp16": 2, "fp32": 4}
BACKWARD_FLOPS = 2.5  # five products against the forward's two


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One call. `lengths` are the sequences of a packed call, or how full each row of a cache is."""

    name: str
    about: str
    kind: Kind = "dense"
    batch: int = 1
    q_len: int
    k_len: int
    heads: int
    heads_kv: int
    head_dim: int
    dtype: str = "bf16"
    dtype_kv: str | None = None  # of keys and values, where it is another
    causal: bool = True
    window: int = -1  # keys to the left, beside the query's own
    backward: bool = False
    lengths: tuple[int, ...] = ()
    page_size: int = 0
    compile_in_quick: bool = False  # FlexAttention's compile time is spent on it even in --quick

    @property
    def sequences(self) -> tuple[tuple[int, int], ...]:
        """(queries, keys) of each sequence."""
        if self.kind == "packed":
            return tuple((n, n) for n in self.lengths)
        if self.lengths:
            return tuple((self.q_len, n) for n in self.lengths)
        return ((self.q_len, self.k_len),) * self.batch

    @property
    def uniform(self) -> bool:
        return len(set(self.sequences)) == 1

    @property
    def pairs(self) -> int:
        """Kept query-key pairs of one head."""
        return sum(kept_pairs(q, k, causal=self.causal, window=self.window) for q, k in self.sequences)

    @property
    def flops(self) -> float:
        forward = 4.0 * self.pairs * self.heads * self.head_dim
        return forward * (1 + BACKWARD_FLOPS) if self.backward else forward

    @property
    def bytes(self) -> int:
        """Each operand moved once: q, the keys and values that are seen, out; with backward also dout and gradients.

        The result of a q in e4m3 is bf16.
        """
        numbers = sum(rows for rows, _ in self.sequences) * self.heads * self.head_dim
        q, out = numbers * ITEM[self.dtype], numbers * max(ITEM[self.dtype], ITEM["bf16"])
        kv = sum(self.keys_seen) * self.key_bytes
        forward = q + out + kv
        return forward + (4 * q + 2 * kv) if self.backward else forward

    @property
    def key_bytes(self) -> int:
        """The bytes of one key and its value, of all heads together."""
        return 2 * self.heads_kv * self.head_dim * ITEM[self.dtype_kv or self.dtype]

    @property
    def fp8(self) -> bool:
        return "e4m3" in (self.dtype, self.dtype_kv)

    @property
    def in_bf16(self) -> Workload:
        """The same call without e4m3."""
        return replace(self, dtype="bf16", dtype_kv=None)

    @property
    def keys_seen(self) -> tuple[int, ...]:
        """How many keys of each sequence some query sees."""
        return tuple(keys if self.window < 0 else min(keys, rows + self.window) for rows, keys in self.sequences)

    @property
    def score_bytes(self) -> int:
        """What a (Tq, Tk) matrix of scores in fp32 would take, all heads: the cost of doing it naively."""
        rows = sum(rows for rows, _ in self.sequences)
        keys = sum(keys for _, keys in self.sequences) if self.kind == "packed" else max(k for _, k in self.sequences)
        return rows * keys * self.heads * 4


def kept_pairs(rows: int, keys: int, *, causal: bool, window: int) -> int:
    """Pairs that a bottom-right aligned mask keeps."""
    if not causal and window < 0:
        return rows * keys
    total = 0
    for i in range(rows):
        p = i + keys - rows
        last = min(keys, p + 1) if causal else keys
        first = max(0, p - window) if window >= 0 else 0
        total += max(0, last - first)
    return total


def _train(
    name: str, about: str, tokens: int, *, batch: int = 1, heads: int, head_dim: int, **more: object
) -> Workload:
    return Workload(
        name=name,
        about=about,
        batch=batch,
        q_len=tokens,
        k_len=tokens,
        heads=heads,
        heads_kv=heads,
        head_dim=head_dim,
        **more,  # type: ignore[arg-type]
    )


def _cache(name: str, about: str, lengths: tuple[int, ...], capacity: int, **more: object) -> Workload:
    base: dict[str, object] = {"heads": 12, "heads_kv": 3, "head_dim": 128, "q_len": 1, "kind": "cache"}
    return Workload(name=name, about=about, batch=len(lengths), k_len=capacity, lengths=lengths, **(base | more))  # type: ignore[arg-type]


RAGGED = (32768, 1024, 8192, 30000, 17, 4096, 12345, 20000)
QUICK_RAGGED = (8192, 256, 2048, 7500, 17, 1024, 3086, 5000)
PACKED = (1024, 96, 512, 640, 31, 700, 384, 128, 1000, 257, 512, 768, 64, 900, 648, 528)
QUICK_PACKED = (512, 48, 256, 320, 31, 350, 192, 64, 500, 129, 256, 384, 32, 450, 324, 248)

# Small enough that all of it, dense masks included, takes under two minutes on two CPU cores.
QUICK = (
    _train("train-causal-d64", "training, causal, D=64", 1024, heads=6, head_dim=64),
    _train("train-causal-d128", "training, causal, D=128", 2048, heads=6, head_dim=128),
    _train("train-causal-d256", "training, causal, D=256", 1024, heads=3, head_dim=256),
    _train(
        "train-window", "training, window 512", 4096, heads=6, head_dim=128, window=512, compile_in_quick=True
    ),
    _train(
        "train-window-fwdbwd", "training, window 256, with backward", 2048, heads=6, head_dim=128, window=256,
        backward=True,
    ),
    _train("train-causal-fwdbwd", "training, causal, with backward", 1024, heads=6, head_dim=128, backward=True),
    Workload(
        name="prefill", about="prefill of a prompt, GQA 12/3", q_len=2048, k_len=2048, heads=12, heads_kv=3,
        head_dim=128,
    ),
    _cache(
        "chunked-prefill", "128 new tokens on a cache, window 1024", (8192,), 8192, q_len=128, heads=6, heads_kv=6,
        window=1024,
    ),
    _cache("decode-uniform", "decode, 8 rows of one length, GQA 12/3", (8192,) * 8, 8192),
    _cache("decode-ragged", "decode, 8 rows of unlike lengths, GQA 12/3", QUICK_RAGGED, 8192),
    _cache(
        "decode-fp8-cache", "decode, bf16 over a cache in e4m3, 8 rows, GQA 12/3", (8192,) * 8, 8192, dtype_kv="e4m3"
    ),
    Workload(
        name="varlen-packing", about="16 documents packed into 4096 tokens", kind="packed", q_len=0, k_len=0,
        heads=6, heads_kv=6, head_dim=128, lengths=QUICK_PACKED, compile_in_quick=True,
    ),
    _cache(
        "paged-decode", "decode from pages of 64, unlike lengths", QUICK_RAGGED, 8192, kind="paged", page_size=64
    ),
)  # fmt: skip

CPU = (
    *(w for w in QUICK if w.name.startswith("train-causal")),
    _train("train-window-8k", "training, window 1024", 8192, heads=6, head_dim=128, window=1024),
    _train("train-window-16k", "training, window 1024", 16384, heads=6, head_dim=128, window=1024),
    _train(
        "train-window-fwdbwd", "training, window 1024, with backward", 4096, heads=6, head_dim=128, window=1024,
        backward=True,
    ),
    *(w for w in QUICK if w.name in ("prefill", "chunked-prefill")),
    _cache("decode-uniform", "decode, 8 rows of one length, GQA 12/3", (32768,) * 8, 32768),
    _cache("decode-ragged", "decode, 8 rows of unlike lengths, GQA 12/3", RAGGED, 32768),
    _cache("decode-ragged-window", "the same with window 1024", RAGGED, 32768, window=1024),
    Workload(
        name="varlen-packing", about="16 documents packed into 8192 tokens", kind="packed", q_len=0, k_len=0,
        heads=6, heads_kv=6, head_dim=128, lengths=PACKED,
    ),
    _cache("paged-decode", "decode from pages of 64, unlike lengths", RAGGED, 32768, kind="paged", page_size=64),
    _cache(
        "decode-fp8-cache", "decode, bf16 over a cache in e4m3, 8 rows, GQA 12/3", (32768,) * 8, 32768, dtype_kv="e4m3"
    ),
    _cache(
        "paged-decode-fp8-cache", "decode, bf16 over pages in e4m3", RAGGED, 32768, kind="paged", page_size=64,
        dtype_kv="e4m3",
    ),
    Workload(
        name="prefill-fp8", about="prefill of a prompt in e4m3, GQA 12/3", q_len=2048, k_len=2048, heads=12,
        heads_kv=3, head_dim=128, dtype="e4m3",
    ),
)  # fmt: skip

# What a GPU is asked: the shapes of nanochat-like training and of serving.
CUDA = (
    *(
        _train(f"train-causal-d{d}{tail}", f"training, causal, D={d}{more}", 8192, batch=4, heads=2048 // d,
               head_dim=d, backward=back)
        for d in (64, 128, 256)
        for back, tail, more in ((False, "", ""), (True, "-fwdbwd", ", with backward"))
    ),
    _train("train-window", "training, window 1024", 16384, batch=2, heads=16, head_dim=128, window=1024),
    _train(
        "train-window-fwdbwd", "training, window 1024, with backward", 16384, batch=2, heads=16, head_dim=128,
        window=1024, backward=True,
    ),
    Workload(
        name="prefill", about="prefill of a prompt, GQA 32/8", q_len=8192, k_len=8192, heads=32, heads_kv=8,
        head_dim=128,
    ),
    _cache(
        "chunked-prefill", "512 new tokens on a cache", (32768,), 32768, q_len=512, heads=32, heads_kv=8
    ),
    _cache("decode-uniform", "decode, 16 rows of one length, GQA 32/8", (16384,) * 16, 16384, heads=32, heads_kv=8),
    _cache("decode-ragged", "decode, 8 rows of unlike lengths, GQA 32/8", RAGGED, 32768, heads=32, heads_kv=8),
    Workload(
        name="varlen-packing", about="64 documents packed into 32768 tokens", kind="packed", q_len=0, k_len=0,
        heads=16, heads_kv=16, head_dim=128, lengths=PACKED * 4,
    ),
    Workload(
        name="varlen-packing-fwdbwd", about="the same with backward", kind="packed", q_len=0, k_len=0,
        heads=16, heads_kv=16, head_dim=128, lengths=PACKED * 4, backward=True,
    ),
    _cache(
        "paged-decode", "decode from pages of 64, unlike lengths", RAGGED, 32768, kind="paged", page_size=64,
        heads=32, heads_kv=8,
    ),
    _cache(
        "decode-fp8-cache", "decode, bf16 over a cache in e4m3, 16 rows, GQA 32/8", (16384,) * 16, 16384, heads=32,
        heads_kv=8, dtype_kv="e4m3",
    ),
    _cache(
        "paged-decode-fp8-cache", "decode, bf16 over pages in e4m3", RAGGED, 32768, kind="paged", page_size=64,
        heads=32, heads_kv=8, dtype_kv="e4m3",
    ),
    Workload(
        name="prefill-fp8", about="prefill of a prompt in e4m3, GQA 32/8", q_len=8192, k_len=8192, heads=32,
        heads_kv=8, head_dim=128, dtype="e4m3",
    ),
)  # fmt: skip


def suite(device_type: str, *, quick: bool) -> tuple[Workload, ...]:
    """The workloads for a device; `quick` on CUDA drops nothing but repeats (the shapes are already short)."""
    if device_type == "cuda":
        return CUDA
    return QUICK if quick else CPU
