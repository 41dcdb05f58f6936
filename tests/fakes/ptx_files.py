"""PTX files of a few tiny kernels, as nvcc would write them."""

from __future__ import annotations


def ptx(*kernels: str, gpu: str = "sm_121", number: int = 0) -> str:
    """A file with these kernels; the labels' numbers count the kernels from `number` on."""
    body = "{{\n$L__BB{number}_1: // %bb.{number}\n\t{{ mov.u32 %r1, {kernel}; }}\n}}\n"
    texts = (f".entry {kernel}()\n{body.format(number=n, kernel=kernel)}" for n, kernel in enumerate(kernels, number))
    return f".version 9.0\n.target {gpu}\n.global .align 1 .b8 other_{number}[1];\n\n" + "\n".join(texts)
