"""Small workloads and a made-up report that the bench's tests share."""

from __future__ import annotations

from flash_attn3_sm121.bench.result import Entry, Report, WorkloadResult
from flash_attn3_sm121.bench.workloads import Workload


def dense(**changes: object) -> Workload:
    base: dict[str, object] = {
        "name": "tiny", "about": "a tiny one", "q_len": 40, "k_len": 40, "heads": 2, "heads_kv": 2, "head_dim": 16,
        "dtype": "fp32",
    }  # fmt: skip
    return Workload(**(base | changes))  # type: ignore[arg-type]


TINY: dict[str, Workload] = {
    "causal": dense(),
    "full": dense(causal=False),
    "window": dense(window=7),
    "backward": dense(window=5, backward=True, heads=4),
    "gqa": dense(heads=4, heads_kv=1, batch=2),
    "cache": dense(kind="cache", batch=3, q_len=2, k_len=64, lengths=(64, 64, 64), heads=4),
    "ragged": dense(kind="cache", batch=3, q_len=1, k_len=64, lengths=(64, 9, 33), heads=4),
    "ragged-window": dense(kind="cache", batch=2, q_len=4, k_len=64, lengths=(50, 20), window=6),
    "packed": dense(kind="packed", q_len=0, k_len=0, lengths=(17, 1, 30)),
    "packed-backward": dense(kind="packed", q_len=0, k_len=0, lengths=(17, 1, 30), backward=True),
    "paged": dense(kind="paged", batch=2, q_len=1, k_len=64, page_size=16, lengths=(61, 18), heads=4),
}

# Tensors in e4m3: a cache, pages, and all of them.
FP8: dict[str, Workload] = {
    "cache": dense(dtype="bf16", dtype_kv="e4m3", kind="cache", batch=2, q_len=1, k_len=64, lengths=(64, 64), heads=4),
    "paged": dense(
        dtype="bf16", dtype_kv="e4m3", kind="paged", batch=2, q_len=1, k_len=64, page_size=16, lengths=(61, 18)
    ),
    "all": dense(dtype="e4m3", q_len=60, k_len=60),
}


def entry(contender: str, ms: float, *, status: str = "ok", peak: int = 1 << 20, why: str = "") -> Entry:
    right = status == "ok"
    return Entry(
        contender=contender,
        status=status,  # type: ignore[arg-type]
        why=why,
        error=0.002,
        tolerance=0.01,
        median_ms=ms,
        low_ms=ms * 0.9,
        high_ms=ms * 1.1,
        samples_ms=(ms * 0.9, ms, ms * 1.1),
        peak_bytes=peak,
        tflops=1 / ms if right else None,
        gbps=10 / ms if right else None,
        of_ceiling=0.1 / ms if right else None,
    )


def report(*, scale: float = 1.0, device: str = "Imaginary <GPU>") -> Report:
    """Three workloads: one won, one where the dense mask is wrong, one that nobody serves."""
    won = (
        entry("sdpa", 2.0 * scale),
        entry("torch-math", 90.0 * scale),
        Entry(contender="flex", status="skipped", why="left out"),
        entry("dense-mask", 20.0 * scale, peak=30 << 20),
    )
    wrong = (
        entry("sdpa", 3.0 * scale),
        Entry(contender="torch-math", status="failed", why="RuntimeError: <boom>"),
        entry("dense-mask", 1.0, status="wrong", why="out: error 3 of its size, allowed 0.01"),
    )
    nobody = (Entry(contender="sdpa", status="refused", why="no | reason"),)
    return Report(
        date="2026-01-02 03:04 UTC",
        commit="abc",
        command="flash-attn3 bench --quick",
        machine={"device": device, "torch": "2.13.0"},
        dtype="bf16",
        ceiling_tflops=2.0,
        ceiling_gbps=20.0,
        seconds=12.0,
        results=tuple(
            WorkloadResult(
                workload=dense(name=name, about=f"about {name}"), flops=1e9, bytes=10**6, bound=bound, entries=entries
            )
            for name, bound, entries in (
                ("won", "compute", won),
                ("ragged", "memory", wrong),
                ("nobody", "memory", nobody),
            )
        ),
    )
