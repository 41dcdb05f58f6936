"""The compiled kernel: once per shape class, announced, failures remembered; and right (slow, needs a C++ compiler)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flash_attn3_sm121.errors import BackendError
from flash_attn3_sm121.flex import compiled
from flash_attn3_sm121.flex.backend import forward
from flash_attn3_sm121.flex.compiled import KernelCache, plain_kernel, shape_class
from tests.flex.reference import Rule, args_of, attend_batch, attend_packed
from tests.inductor import needs_inductor

# torch's own code generator imports a deprecated part of torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


def _counting(lines: list[str]) -> KernelCache:
    from torch._dynamo.backends.debugging import aot_eager

    return KernelCache(compiler=aot_eager, narrate=lines.append)


def test_compiled_once_per_shape_class_and_said_so() -> None:
    torch.compiler.reset()
    lines: list[str] = []
    kernels = _counting(lines)
    q = torch.randn(2, 140, 4, 32)
    for _ in range(3):
        forward(args_of(q, q, q, Rule(right=0)), run=kernels)
    forward(args_of(q, q, q, Rule(left=5, right=0)), run=kernels)  # another mask, the same kernel
    assert kernels.compiles == 1
    assert "compiling FlexAttention for cpu float32 d=32 heads=4/4 forward" in lines[0]
    assert lines[1].startswith("flash-attn3: compiled in ")
    forward(args_of(q, q[:, :, :2], q[:, :, :2], Rule(right=0)), run=kernels)
    assert kernels.compiles == 2


def test_many_shapes_do_not_exhaust_torchs_recompile_limit() -> None:
    torch.compiler.reset()
    kernels = _counting([])
    for n in range(12):
        q = torch.randn(1, 130 + n, 1, 16)
        forward(args_of(q, q, q, Rule()), run=kernels)
    assert kernels.compiles == 12


def test_a_failed_compile_is_an_error_that_says_what_to_do_and_is_not_repeated() -> None:
    torch.compiler.reset()
    tries = []

    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        tries.append(1)
        raise RuntimeError("ptxas fatal: Value 'sm_121a' is not defined")

    kernels = KernelCache(compiler=broken, narrate=lambda line: None)
    q = torch.randn(1, 20, 1, 16)
    for _ in range(2):
        with pytest.raises(BackendError, match=r"sm_121a") as caught:
            forward(args_of(q, q, q, Rule()), run=kernels)
        assert "TRITON_PTXAS_PATH" in str(caught.value) and "FLASH_ATTN3_BACKEND=sdpa" in str(caught.value)
    assert len(tries) == 1


@pytest.mark.slow
@needs_inductor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_generated_code_is_right(dtype: torch.dtype) -> None:
    torch.compiler.reset()
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    kernels = KernelCache(narrate=lambda line: None)
    q, k, v = (torch.randn(2, n, h, 64).to(dtype) for n, h in ((200, 4), (333, 2), (333, 2)))
    for rule in (Rule(left=50, right=0), Rule(right=0, softcap=6.0)):
        out, lse = forward(args_of(q, k, v, rule), run=kernels)
        want, want_lse = attend_batch(q, k, v, scale=0.2, rule=rule, used_q=[200] * 2, used_k=[333] * 2)
        torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(lse.double(), want_lse, atol=2e-4, rtol=1e-4)
    cu = [0, 90, 90, 200]
    cu_t = torch.tensor(cu, dtype=torch.int32)
    p, kp = q[0], k[0, :200]
    out, lse = forward(args_of(p, kp, kp, Rule(right=0), cu_seqlens_q=cu_t, cu_seqlens_k=cu_t), run=kernels)
    want, want_lse = attend_packed(p, kp, kp, scale=0.2, rule=Rule(right=0), cu_q=cu, cu_k=cu)
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@needs_inductor
def test_fully_masked_rows_of_generated_code() -> None:
    torch.compiler.reset()
    q, k = torch.randn(1, 150, 2, 32), torch.randn(1, 40, 2, 32)
    out, lse = forward(args_of(q, k, k, Rule(right=0)), run=KernelCache(narrate=lambda line: None))
    assert not out[:, :110].any() and bool((lse[..., :110] == float("-inf")).all())
    assert bool(torch.isfinite(lse[..., 110:]).all()) and not bool(out.isnan().any())


def test_the_narration_goes_to_stderr() -> None:
    code = (
        "import torch\n"
        "from flash_attn3_sm121.flex.compiled import KernelCache\n"
        "KernelCache()._narrate('flash-attn3: compiling')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "flash-attn3: compiling\n" and done.stdout == ""


@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "whole"),
    [(113, 4, 2, True), (64, 4, 2, False), (65, 4, 2, True), (113, 4, 4, False), (1, 16, 1, False), (128, 4, 2, False)],
)
def test_torchs_split_key_template_is_not_asked_for_more_rows_than_it_has_tiles_for(
    rows: int, heads: int, kv_heads: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU torch takes rows times grouped heads as one tile below 128 rows, and fails where that is over 128."""
    q, k = (torch.empty(1, count, length, 64, device="meta") for count, length in ((heads, rows), (kv_heads, 300)))
    cls = shape_class(q, k, k, scale=1.0, softcap=0.0, want_lse=False, grad=False)
    assert cls.whole_keys is whole
    given: list[Any] = []
    monkeypatch.setattr(compiled, "flex_attention", lambda *args, **more: given.append(more.get("kernel_options")))
    plain_kernel(cls)(q, k, k, None)  # type: ignore[arg-type]
    assert given == [{"FORCE_USE_FLEX_ATTENTION": True} if whole else None]
