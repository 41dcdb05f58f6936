"""Kernels of a few lines, as PTX, for tests of the executor; functions of the executing process that launch them."""

from __future__ import annotations

from typing import Any

import torch

HEAD = ".version 9.0\n.target sm_121\n.address_size 64\n.extern .shared .align 16 .b8 pool[];\n"


def kernel(name: str, body: str) -> str:
    """A kernel of two pointers; %rd1 and %rd2 hold them, %r0 the thread, %r1 the block, %r2 the thread times four."""
    return f"""
.visible .entry {name}(
	.param .u64 .ptr .align 1 {name}_0,
	.param .u64 .ptr .align 1 {name}_1
)
{{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<40>;
	.reg .b32 %f<40>;
	.reg .b64 %rd<20>;
	ld.param.u64 %rd8, [{name}_0];
	ld.param.u64 %rd9, [{name}_1];
	cvta.to.global.u64 %rd1, %rd8;
	cvta.to.global.u64 %rd2, %rd9;
	mov.u32 %r0, %tid.x;
	mov.u32 %r1, %ctaid.x;
	shl.b32 %r2, %r0, 2;
	cvt.u64.u32 %rd3, %r2;
	mov.u32 %r9, pool;
	add.s32 %r3, %r9, %r2;
{body}
	ret;
}}
"""


# What each does wrong is in its name; the numbers of the expected findings are in the test.
KERNELS = {
    "fine": "ld.global.u32 %r4, [%rd1];\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
    "behind": "add.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4+4], %r0;",
    "read_behind": "add.s64 %rd4, %rd1, %rd3;\nld.global.u32 %r4, [%rd4+128];\n"
    "add.s64 %rd5, %rd2, %rd3;\nst.global.u32 [%rd5], %r4;",
    "odd": "add.s64 %rd4, %rd1, 4;\nld.global.v2.u64 {%rd5, %rd6}, [%rd4];",
    "shared_behind": "st.shared.u32 [%r3+64], %r0;",
    "never_written": "ld.shared.u32 %r4, [%r3];\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
    "two_lanes": "st.shared.u32 [%r9], %r0;",
    "two_lanes_alike": "mov.b32 %r5, 7;\nst.shared.u32 [%r9], %r5;",
    "warps_race": "shr.u32 %r5, %r0, 5;\nst.shared.u32 [%r9], %r5;",
    "barrier_orders": "shr.u32 %r5, %r0, 5;\nsetp.eq.s32 %p1, %r5, 0;\n@%p1 st.shared.u32 [%r9], %r5;\nbar.sync 0;\n"
    "ld.shared.u32 %r6, [%r9];\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r6;",
    "arrive_orders_one_way": "shr.u32 %r5, %r0, 5;\nsetp.eq.s32 %p1, %r5, 0;\n@%p1 bra $first;\nmov.b32 %r7, 1;\n"
    "mov.b32 %r8, 64;\nbar.sync %r7, %r8;\nld.shared.u32 %r6, [%r9];\nbra.uni $end;\n$first:\n"
    "st.shared.u32 [%r9], %r5;\nmov.b32 %r7, 1;\nmov.b32 %r8, 64;\nbar.arrive %r7, %r8;\n$end:",
    "arrive_does_not_wait": "shr.u32 %r5, %r0, 5;\nsetp.eq.s32 %p1, %r5, 0;\nmov.b32 %r7, 1;\nmov.b32 %r8, 64;\n"
    "@%p1 bra $first;\nld.shared.u32 %r6, [%r9];\nbar.sync %r7, %r8;\nbra.uni $end;\n$first:\n"
    "bar.arrive %r7, %r8;\nst.shared.u32 [%r9], %r5;\n$end:",
    "lanes_race": "st.shared.u32 [%r3], %r0;\nxor.b32 %r5, %r3, 4;\nld.shared.u32 %r6, [%r5];",
    "lanes_in_step": "st.shared.u32 [%r3], %r0;\nxor.b32 %r5, %r3, 4;\nbar.warp.sync -1;\nld.shared.u32 %r6, [%r5];\n"
    "bar.warp.sync -1;\nst.shared.u32 [%r3], %r6;",
    "lanes_overwrite": "st.shared.u32 [%r3], %r0;\nbar.warp.sync -1;\nxor.b32 %r5, %r3, 4;\nld.shared.u32 %r6, [%r5];\n"
    "st.shared.u32 [%r3], %r6;",
    "lanes_write_twice": "st.shared.u32 [%r3], %r0;\nxor.b32 %r5, %r3, 4;\nst.shared.u32 [%r5], %r0;",
    # Warp 0 first touches the word plainly, warp 1 adds to it; or the other way round.
    "plain_then_added": "shr.u32 %r5, %r0, 5;\nsetp.eq.s32 %p1, %r5, 0;\n@%p1 st.shared.u32 [%r9], %r5;\n"
    "@!%p1 atom.shared.add.u32 %r6, [%r9], 1;",
    "read_then_added": "mov.b32 %r4, 0;\nst.shared.u32 [%r9], %r4;\nbar.sync 0;\nshr.u32 %r5, %r0, 5;\n"
    "setp.eq.s32 %p1, %r5, 0;\n@%p1 ld.shared.u32 %r6, [%r9];\n@!%p1 atom.shared.add.u32 %r6, [%r9], 1;",
    "lanes_add_then_read": "setp.eq.s32 %p1, %r0, 0;\nmov.b32 %r4, 0;\n@%p1 st.shared.u32 [%r9], %r4;\nbar.sync 0;\n"
    "atom.shared.add.u32 %r6, [%r9], 1;\nld.shared.u32 %r6, [%r9];",
    "warps_add": "setp.eq.s32 %p1, %r0, 0;\nmov.b32 %r4, 0;\n@%p1 st.shared.u32 [%r9], %r4;\nbar.sync 0;\n"
    "atom.shared.add.u32 %r6, [%r9], 1;\nbar.sync 0;\nld.shared.u32 %r6, [%r9];\nadd.s64 %rd4, %rd2, %rd3;\n"
    "st.global.u32 [%rd4], %r6;",
    "narrow": "cvt.u16.u32 %rs1, %r0;\nst.shared.u16 [%r3], %rs1;",
    "nobody_comes": "mov.b32 %r7, 2;\nmov.b32 %r8, 96;\nbar.sync %r7, %r8;",
    "blocks_race": "add.s32 %r4, %r1, %r0;\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
    "blocks_alike": "add.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r0;",
    "blocks_add": "atom.global.add.u32 %r4, [%rd2], 1;",
    "not_waited": "cp.async.ca.shared.global [%r3], [%rd1], 4;\ncp.async.commit_group;\nld.shared.u32 %r4, [%r3];\n"
    "add.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
    "waited": "cp.async.ca.shared.global [%r3], [%rd1], 4;\ncp.async.commit_group;\ncp.async.wait_group 0;\n"
    "ld.shared.u32 %r4, [%r3];\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
    "one_group_open": "cp.async.ca.shared.global [%r3], [%rd1], 4;\ncp.async.commit_group;\ncp.async.ca.shared.global "
    "[%r3+128], [%rd1], 4;\ncp.async.commit_group;\ncp.async.wait_group 1;\nld.shared.u32 %r4, [%r3];\n"
    "add.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
    "strange": "fma.rn.f64 %rd5, %rd6, %rd6, %rd6;",
    "halves": "setp.lt.s32 %p1, %r0, 10;\nmov.b32 %r4, 1;\n@%p1 bra $low;\nmov.b32 %r4, 2;\nbra.uni $met;\n$low:\n"
    "add.s32 %r4, %r4, 4;\n$met:\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
    "sums": "mov.b32 %f1, %r0;\ncvt.rn.f32.u32 %f1, %r0;\nmov.b32 %r4, %f1;\n"
    + "".join(
        f"shfl.sync.bfly.b32 %r5|%p1, %r4, {step}, 31, -1;\nmov.b32 %f2, %r5;\nadd.ftz.f32 %f1, %f1, %f2;\n"
        "mov.b32 %r4, %f1;\n"
        for step in (1, 2, 4, 8, 16)
    )
    + "add.s64 %rd4, %rd2, %rd3;\nst.global.f32 [%rd4], %f1;",
    "constants": "mov.pred %p1, -1;\nsetp.lt.s32 %p2, %r0, 10;\n@%p2 mov.pred %p1, 0;\nselp.b32 %r4, 7, 9, %p1;\n"
    "add.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
    "quads": "shfl.sync.idx.b32 %r4|%p1, %r0, 1, 7199, -1;\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r4;",
}  # fmt: skip


def _product(kind: str, shape: str, a: int, b: int) -> str:
    """One mma: registers of A, of B (from %rd1), zero for C; D's four to %rd2, lane by lane."""
    words = a + b
    loads = "".join(f"ld.global.u32 %r{10 + i}, [%rd4+{4 * i}];\n" for i in range(words))
    regs_a = ", ".join(f"%r{10 + i}" for i in range(a))
    regs_b = ", ".join(f"%r{10 + a + i}" for i in range(b))
    return (
        f"mul.wide.u32 %rd5, %r0, {4 * words};\nadd.s64 %rd4, %rd1, %rd5;\n{loads}mov.f32 %f1, 0f00000000;\n"
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{%f2, %f3, %f4, %f5}},{{{regs_a}}},{{{regs_b}}},"
        "{%f1, %f1, %f1, %f1};\nmul.wide.u32 %rd6, %r0, 16;\nadd.s64 %rd7, %rd2, %rd6;\n"
        "st.global.v4.f32 [%rd7], {%f2, %f3, %f4, %f5};"
    )


KERNELS |= {
    "mma_bf16": _product("bf16", "m16n8k16", 4, 2),
    "mma_f16": _product("f16", "m16n8k16", 4, 2),
    "mma_e4m3": _product("e4m3", "m16n8k32", 4, 2),
    "matrices": "shl.b32 %r20, %r0, 4;\nadd.s32 %r21, %r9, %r20;\ncvt.u64.u32 %rd5, %r20;\nadd.s64 %rd4, %rd1, %rd5;\n"
    "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd4];\nst.shared.v4.u32 [%r21], {%r4, %r5, %r6, %r7};\nbar.sync 0;\n"
    "ldmatrix.sync.aligned.x4.trans.m8n8.shared.b16 {%r10, %r11, %r12, %r13}, [%r21];\nadd.s64 %rd6, %rd2, %rd5;\n"
    "st.global.v4.u32 [%rd6], {%r10, %r11, %r12, %r13};",
    "eights": "add.s64 %rd4, %rd1, %rd3;\nld.global.f32 %f1, [%rd4];\nmov.f32 %f2, 0f00000000;\n"
    "cvt.rn.satfinite.e4m3x2.f32 %rs1, %f2, %f1;\ncvt.u32.u16 %r4, %rs1;\n"
    "add.s64 %rd5, %rd2, %rd3;\nst.global.u32 [%rd5], %r4;",
}  # fmt: skip

TEXT = HEAD + "".join(kernel(name, body) for name, body in KERNELS.items())


def every(gpu: Any, launches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Launch after launch: what the second tensor holds then, what was found, and why it stopped.

    The first tensor holds 0, 1, 2 ...; the second is zero, and has a word for each thread of the block.
    """
    answers = []
    for wanted in launches:
        gpu.findings = []
        gpu.settings.seed, gpu.settings.lazy = wanted.get("seed", 0), wanted.get("lazy", False)
        gpu.settings.poison = wanted.get("poison", 0xFF)
        block = wanted.get("block", 32)
        first, second = torch.arange(32, dtype=torch.int32), torch.zeros(block, dtype=torch.int32)
        how = {"grid": wanted.get("grid", 1), "block": block, "shared": wanted.get("shared", 256)}
        stopped = ""
        try:
            gpu.launch(wanted["name"], first.data_ptr(), second.data_ptr(), **how)
        except RuntimeError as error:
            stopped = str(error)
        answers.append({"result": second.tolist(), "findings": gpu.findings, "stopped": stopped})
    return answers


def product(gpu: Any, name: str, dtype: str, k: int) -> float:
    """How far an mma is from the product in fp64."""
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, k, generator=generator).to(kind) for rows in (16, 8))
    per = 4 // a.element_size()  # values a word
    half = k // 2
    words = torch.zeros(32, 6, dtype=torch.int32)
    for lane in range(32):
        row, column = lane // 4, lane % 4 * per
        corners = [(a, row, column), (a, row + 8, column), (a, row, column + half), (a, row + 8, column + half)]
        corners += [(b, row, column), (b, row, column + half)]
        for word, (matrix, r, c) in enumerate(corners):
            words[lane, word] = matrix[r, c : c + per].contiguous().view(torch.int32)[0]
    out = torch.zeros(32, 4)
    gpu.launch(name, words.data_ptr(), out.data_ptr())
    right = a.double() @ b.double().T
    found = torch.zeros(16, 8, dtype=torch.float64)
    for lane in range(32):
        row, column = lane // 4, lane % 4 * 2
        found[row, column : column + 2] = out[lane, :2].double()
        found[row + 8, column : column + 2] = out[lane, 2:].double()
    return float((found - right).abs().max())


def matrices(gpu: Any) -> bool:
    """Whether ldmatrix.trans gives four transposed matrices."""
    rows = torch.arange(4 * 64, dtype=torch.int16).view(4, 8, 8)
    out = torch.zeros(32, 8, dtype=torch.int16)
    gpu.launch("matrices", rows.data_ptr(), out.data_ptr(), shared=512)
    return all(torch.equal(out[:, 2 * i : 2 * i + 2].reshape(8, 8), rows[i].T) for i in range(4))


def eights(gpu: Any) -> bool:
    """Whether conversion to e4m3 is torch's, but for what is too large: PTX keeps it finite."""
    few = [0.0, 1.0, -1.5, 0.3, 17.0, 19.0, 1e-3, 2e-3, 448.0, -440.0, 0.0625, 3.3, 5.5, -7.1, 100.0, 240.0]
    values = torch.tensor(few * 2)
    out = torch.zeros(32, dtype=torch.int32)
    gpu.launch("eights", values.data_ptr(), out.data_ptr())
    return out.to(torch.uint8).tolist() == values.to(torch.float8_e4m3fn).view(torch.uint8).tolist()


def units(gpu: Any) -> dict[str, Any]:
    """Tensor-core instructions and conversions against torch."""
    kinds = (("mma_bf16", "bfloat16", 16), ("mma_f16", "float16", 16), ("mma_e4m3", "float8_e4m3fn", 32))
    errors = {name: product(gpu, name, dtype, k) for name, dtype, k in kinds}
    return {**errors, "matrices": matrices(gpu), "eights": eights(gpu)}
