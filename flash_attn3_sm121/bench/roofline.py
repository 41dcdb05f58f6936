"""Rooflines on paper: the least time each workload could take on a device, and what limits it. Predictions, no run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.bench import bounds
from flash_attn3_sm121.bench.devices import DeviceSheet, sheet
from flash_attn3_sm121.bench.measure import Ceiling
from flash_attn3_sm121.bench.session import time_text
from flash_attn3_sm121.bench.workloads import CUDA, Workload
from flash_attn3_sm121.console import Block, Table, paragraph

FP8_RATE = 2  # of tensor cores with products in e4m3 against bf16's, on each device of the sheets that has them


@dataclass(frozen=True, kw_only=True)
class Line:
    """One workload. `intensity` is FLOPs per byte that must move; `kv_mib` is what all its keys and values take."""

    workload: Workload
    intensity: float
    bound: str
    ms: float
    tflops: float
    gbps: float
    kv_mib: float
    tiles: int


def predict(work: Workload, device: DeviceSheet, *, tile_rows: int = 128) -> Line:
    """The least time: all operands moved once, all kept pairs computed, whichever takes longer."""
    rate = FP8_RATE if work.dtype == "e4m3" else 1
    top = Ceiling(dtype=work.dtype, tflops=rate * device.tflops, gbps=device.gbps)
    ms = top.ideal_ms(work.flops, work.bytes)
    keys = sum(keys for _, keys in work.sequences)
    rows_a_group = work.heads // work.heads_kv if work.kind in ("cache", "paged") else 1
    blocks = sum(-(-rows * rows_a_group // tile_rows) for rows, _ in work.sequences) * work.heads // rows_a_group
    return Line(
        workload=work,
        intensity=work.flops / work.bytes,
        bound=top.bound(work.flops, work.bytes),
        ms=ms,
        tflops=work.flops / ms / 1e9,
        gbps=work.bytes / ms / 1e6,
        kv_mib=keys * work.key_bytes / 2**20,
        tiles=blocks,
    )


def beside_bf16(device: DeviceSheet) -> str:
    """How the workloads with e4m3 compare with the same calls in bf16, in a sentence."""
    pairs = ((work, predict(work.in_bf16, device).ms / predict(work, device).ms) for work in CUDA if work.fp8)
    return ", ".join(f"{work.name} {ratio:.2f}" for work, ratio in pairs)


HEAD = ("workload", "GFLOP", "MiB moved", "FLOP/byte", "bound", "least time", "rate then", "K+V", "tiles", "waves")


def roofline(name: str, libraries: Path | None = None) -> list[Block]:
    """The table of `flash-attn3 bench --roofline NAME`.

    Args:
        libraries: the folder of a wheel's libraries, whose kernels are shown for a GB10; None: the workloads alone.

    Raises:
        UsageError: there are no figures for a device of that name.
    """
    device = sheet(name)
    ridge = device.tflops * 1e3 / device.gbps
    rows = []
    for work in CUDA:
        line = predict(work, device)
        rate = f"{line.tflops:.3g} TFLOP/s" if line.bound == "compute" else f"{line.gbps:.3g} GB/s"
        rows.append(
            (
                work.name,
                f"{work.flops / 1e9:.4g}",
                f"{work.bytes / 2**20:.4g}",
                f"{line.intensity:.3g}",
                line.bound,
                time_text(line.ms),
                rate,
                f"{line.kv_mib:.3g} MiB",
                str(line.tiles),
                f"{line.tiles / device.sms:.3g}",
            )
        )
    return [
        *paragraph(
            f"{device.name}: {device.tflops:g} TFLOP/s bf16, {device.gbps:g} GB/s, {device.sms} SMs, "
            f"{device.l2_mib:g} MiB L2 ({device.source})"
        ),
        *paragraph(
            f"compute-bound above {ridge:.0f} FLOP/byte. A prediction on paper: the least time there could be, not a "
            "measurement."
        ),
        "",
        Table(head=HEAD, rows=rows, spare=(1, 2, 7, 3, 8)),
        "",
        *paragraph(f"Times as fast as the same call in bf16: {beside_bf16(device)}."),
        *paragraph(
            f"Decoding gains by bytes; a prefill by products in e4m3, at {FP8_RATE} times bf16's rate, where a wheel "
            "has such kernels (PROFILE=fp8). Other wheels multiply in bf16, and a prefill gains nothing there."
        ),
        "",
        *paragraph(
            "tiles: blocks of 128 query rows (a group's heads folded in for caches); waves: tiles per SM. Below 1 a "
            "call fills the device only by splitting the keys (num_splits)."
        ),
        *(["", *bounds.blocks(libraries)] if libraries and device is bounds.GB10 else []),
    ]
