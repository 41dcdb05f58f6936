"""Every attention kernel that is planned has cases, and a case's process reads the PTX that holds its kernels."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import torch

from ci.plan.profiles import find, select
from ci.plan.units import KV8, QV, backwards, forwards, units
from ci.prove.gb10.build import Executor
from ci.prove.gb10.cases import Case, cases
from ci.prove.gb10.check import Judge
from ci.prove.gb10.executable import Executable
from ci.prove.standin.calls import Call, calls
from flash_attn3_sm121.arch import Family

CHOSEN = select(find("full"), Family.SM8X)
FILES = Executable(
    library=None, namespace="", executor=Executor(folder=Path()),
    ptx=tuple(Path(f"{unit.name}.ptx") for unit in units(CHOSEN) if unit.is_cuda),
)  # fmt: skip


def kernel(case: Case) -> tuple[object, ...]:
    """The kernel that a call launches, by what its template is given."""
    (group,) = {re.findall(r"^\w+_hd\d+(?:_\d+)?(?=_)", path.name)[0] for path in attention(case)}
    masks = {"full": "full", "causal": "causal"}
    mask = masks.get(case.mask, "local")
    if case.rows == 1 and not case.sweep and (case.mask == "causal" or (case.mask == "local" and case.keys == 1)):
        mask = "full" if case.op == "fwd" or case.mask == "local" else mask  # the host code takes such a mask for none
    known = (group, case.dtype, bool(case.softcap), mask)
    if case.op != "fwd":
        return *known, case.mode != "dense", case.heads[0] > case.heads[1]
    # A call with splits=0 may have one or several.
    append = "append" in case.mode
    return *known, case.mode not in ("dense", "paged whole"), append, "paged" in case.mode, case.splits > 1


def attention(case: Case) -> list[Path]:
    return [path for path in FILES.needed(case) if "_hd" in path.name]


def planned() -> set[tuple[object, ...]]:
    """Every attention kernel of the plan, by the same words."""
    found: list[tuple[object, ...]] = []
    masks = ("full", "causal", "local")
    for f in forwards(CHOSEN):
        dims = f"{f.head_dim}" + f"_{f.head_dim_v}" * (f.head_dim != f.head_dim_v)
        own = f.fp8 or f.qv or f.dtype.endswith(KV8)
        lengths = ((False, False), (True, False), (True, True))[: 2 if own else 3]
        assert f.kernels == len(masks) * len(lengths)
        known = (f.group, "bf16" if f.fp8 else f.dtype.removesuffix(KV8).removesuffix(QV), f.softcap)
        assert f.group.endswith(f"hd{dims}")
        found += ((*known, mask, *of, f.paged, f.split) for mask, of in product(masks, lengths))
    for b in backwards(CHOSEN):
        found += ((b.group, b.dtype, b.softcap, *more) for more in product(masks, (False, True), (False, True)))
    assert len(found) == len(set(found))
    return set(found)


def test_each_kernel_of_the_full_profile_has_a_case() -> None:
    reached = {kernel(case) for case in cases(CHOSEN) if case.op in ("fwd", "bwd", "ordered")}
    assert sorted(map(str, planned() - reached)) == []
    assert reached <= planned()


@pytest.mark.parametrize(
    ("more", "group", "count"),
    [
        ({"dim": 48}, "fwd_hd64_", 8),
        ({"dim": 176, "dim_v": 104}, "fwd_hd192_128_", 4),
        ({"dim": 80, "kv8": True}, "fwd_kv8_hd96_", 8),
        ({"dim": 80, "kv8": True, "fp8": True}, "fwd_fp8_hd96_", 4),
        ({"dim": 48, "dim_v": 256, "qv": True}, "fwd_qv_hd64_512_", 4),
        ({"dim": 64, "dim_v": 264}, "fwd_qv_hd64_512_", 4),
        ({"dim": 176, "dim_v": 104, "op": "bwd"}, "bwd_hd192_", 4),
        ({"dim": 256, "op": "ordered"}, "bwd_ordered_hd256_", 4),
    ],
)
def test_a_case_reads_the_files_of_its_own_kernels(more: dict[str, object], group: str, count: int) -> None:
    case = Case(**{"op": "fwd", "dtype": "bf16", **more})  # type: ignore[arg-type]
    mine = attention(case)
    assert len(mine) == count and all(path.name.startswith(group) for path in mine)
    assert {path.name for path in FILES.needed(case)} - {path.name for path in mine} == {"combine.ptx", "prepare.ptx"}


def test_calls_of_a_v_of_512_append_nothing() -> None:
    """No kernel would: `ci kernels --profile full` drives these calls through the host code."""
    wide = [call for call in calls(CHOSEN) if call.op == "fwd" and call.arguments["v"]["shape"][-1] > 256]
    assert wide and not any("v_new" in call.arguments for call in wide)


def e4m3_kernel(call: Call) -> tuple[object, ...]:
    """The kernel that reads e4m3 and that a call launches, by the words of `planned`."""
    given = call.arguments
    q, k = given["q"], given["k"]
    fp8 = q["dtype"] == "float8_e4m3fn"
    dim = next(dim for dim in CHOSEN.head_dims if dim >= q["shape"][-1])
    mask = "causal" if given.get("is_causal") else "local" if "window_size_left" in given else "full"
    if q["shape"][1] == 1 and mask == "causal":
        mask = "full"
    known = (f"fwd_{'fp8' if fp8 else 'kv8'}_hd{dim}", "fp16" if q["dtype"] == "float16" else "bf16")
    lengths = "cu_seqlens_q" in given or "seqused_k" in given
    assert k["dtype"] == given["v"]["dtype"] == "float8_e4m3fn" and "k_new" not in given
    return *known, given["softcap"] > 0, mask, lengths, False, "page_table" in given, given["num_splits"] > 1


def test_calls_reach_each_kernel_that_reads_e4m3() -> None:
    """`ci kernels` drives them through the host code: what none launches has no row on its page."""
    reached = {e4m3_kernel(call) for call in calls(CHOSEN) if "k_descale" in call.arguments}
    wanted = {known for known in planned() if str(known[0]).startswith(("fwd_kv8", "fwd_fp8"))}
    assert len(wanted) == 720 and reached == wanted


def test_calls_have_e4m3_where_kernels_read_it() -> None:
    for profile, family in (("common", Family.SM8X), ("full", Family.SM90)):
        assert not any("k_descale" in call.arguments for call in calls(select(find(profile), family)))


@pytest.mark.parametrize(("error", "right"), [(5e-3, True), (9e-3, False), (float("nan"), False)])
def test_an_output_may_be_off_by_what_rounding_can_come_to(error: float, right: bool) -> None:
    """The limit of a bf16 output near zero is 4e-3; roundings of large terms that cancel come to more."""
    judge = Judge("bf16", 64)
    judge.near("out", torch.tensor([error]), torch.zeros(1), kind="out", room=lambda: torch.tensor([8e-3]))
    assert (judge.parts["out"] <= 1) is right
    judge.near("out", torch.tensor([error]), torch.zeros(1), kind="out")
    assert judge.parts["out"] > 1
