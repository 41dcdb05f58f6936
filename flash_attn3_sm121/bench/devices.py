"""Published and measured figures of devices, for rooflines on paper. Each row says where its numbers come from."""

from __future__ import annotations

from dataclasses import dataclass

from flash_attn3_sm121.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DeviceSheet:
    """What a device can do at best."""

    name: str
    capability: str
    sms: int
    tflops: float  # bf16, dense, fp32 accumulation
    gbps: float
    l2_mib: float
    source: str


SHEETS: dict[str, DeviceSheet] = {
    "gb10": DeviceSheet(
        name="NVIDIA GB10 (DGX Spark)",
        capability="12.1",
        sms=48,
        tflops=92.3,
        gbps=218.0,
        l2_mib=24.0,
        source="bf16 matmul and copy as measured by owners (peaks by data sheet: about 105 TFLOP/s, 273 GB/s)",
    ),
    "rtx5090": DeviceSheet(
        name="NVIDIA GeForce RTX 5090",
        capability="12.0",
        sms=170,
        tflops=209.5,
        gbps=1792.0,
        l2_mib=96.0,
        source="data sheet",
    ),
    "rtx4090": DeviceSheet(
        name="NVIDIA GeForce RTX 4090",
        capability="8.9",
        sms=128,
        tflops=165.2,
        gbps=1008.0,
        l2_mib=72.0,
        source="data sheet",
    ),
    "h100": DeviceSheet(
        name="NVIDIA H100 SXM",
        capability="9.0",
        sms=132,
        tflops=989.0,
        gbps=3350.0,
        l2_mib=50.0,
        source="data sheet; large matmuls reach about 800 TFLOP/s of it",
    ),
}


def sheet(name: str) -> DeviceSheet:
    try:
        return SHEETS[name.lower()]
    except KeyError:
        raise UsageError(f"no figures for {name!r}", hint=f"known: {', '.join(SHEETS)}") from None
