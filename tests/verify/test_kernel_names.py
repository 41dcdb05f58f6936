"""Kernels told by their mangled names, in which a repeated type is a reference and not spelled again."""

from __future__ import annotations

import pytest

from ci.verify import kernels
from tests.fakes.doctored import forward_name

HEAD = "_ZN7cutlass13device_kernelIN5flash19enable_sm80_to_sm89INS1_16FlashAttn{0}Sm80INS1_25CollectiveMainloop{0}Sm80I"
TAIL = "EN4cute5tupleIJNS5_1C{}EEE{}NS_10bfloat16_tEfNS_4arch4Sm80ELb1ELb0ELb0ELb1ELb0EEEEEEEEEvNT_6ParamsE"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param("ILi128EEENS7_ILi64EEES9_", (128, 64, 64), id="second again"),
        pytest.param("ILi64EEENS7_ILi128EEES8_", (64, 128, 64), id="first again"),
        pytest.param("ILi64EEENS7_ILi96EEENS7_ILi128EEE", (64, 96, 128), id="all different"),
        pytest.param("ILi64EEES8_NS7_ILi192EEE", (64, 64, 192), id="first twice"),
        pytest.param("ILi64EEES8_S8_", (64, 64, 64), id="all the same"),
    ],
)
@pytest.mark.parametrize("direction", ["Fwd", "Bwd"])
def test_the_tile_of_a_kernel(direction: str, sizes: str, expected: tuple[int, int, int]) -> None:
    first, value_dim = ("Li4ELi1ELb1", "Li64E") if direction == "Fwd" else ("Li2ELi2", "")
    name = HEAD.format(direction) + first + TAIL.format(sizes, value_dim)
    tile, variant = kernels.tile(name), kernels.variant(name)
    assert tile is not None and variant is not None
    assert (tile.block_m, tile.block_n, tile.head_dim) == expected
    assert (tile.warps, tile.stages, tile.q_in_regs) == ((4, 1, True) if direction == "Fwd" else (2, 2, False))
    assert variant.head_dim == expected[2] and variant.flags == {"causal", "varlen"}


def test_the_tile_of_a_kernel_with_a_second_query() -> None:
    name = HEAD.format("Fwd") + "Li8ELi2ELb0EN4cute5tupleIJNS5_1CILi32EEES8_NS7_ILi64EEEEEELi512EN3fa32QvINS_"
    name += "10bfloat16_tEEEfNS_4arch4Sm80ELb1ELb0ELb0ELb1ELb1ELb0ELb1ELb1EEEEEEEEEvNT_6ParamsE"
    tile, variant = kernels.tile(name), kernels.variant(name)
    assert tile is not None and tile.qv and (tile.head_dim, tile.head_dim_v, tile.warps) == (64, 512, 8)
    assert str(variant) == "hd64/512 bf16 causal packgqa paged qv split varlen"
    assert kernels.dynamic_smem(name) == 90496
    counted = {"tensor": 4 + 32 + 32}  # Q K, Qv V and P V of a warp
    assert kernels.loop_of(name, counted) == {**counted, "warps": 8}


def test_other_kernels_have_no_tile() -> None:
    assert kernels.tile("_ZN5flash32prepare_varlen_num_blocks_kernelILi1ELb0EEEviii") is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (forward_name(causal=False), "forward"),
        ("_ZN5flash16FlashAttnBwdSm90IiE3runEv", "backward"),
        ("_ZN5flash22FlashAttnBwdPreprocessIiE3runEv", "preprocess"),
        ("_ZN5flash32FlashAttnBwdPostprocessConvertdQIiE3runEv", "postprocess"),
        ("_ZN5flash19FlashAttnFwdCombineIiE3runEv", "combine"),
        ("_ZN5flash32prepare_varlen_num_blocks_kernelILi1ELb0EEEviii", "prepare"),
        ("_ZN3cub18CUB_300001_SM_12106detail11EmptyKernelIvEEvv", "library"),
        ("_Znew", "other"),
    ],
)
def test_the_kind_of_a_kernel(name: str, kind: str) -> None:
    assert kernels.kind(name) == kind


def test_the_variant_of_a_kernel() -> None:
    assert str(kernels.variant(forward_name(causal=True, varlen=True))) == "hd64 bf16 causal packgqa varlen"
    assert kernels.variant("_Znew") is None and kernels.needs_tensor_cores("other")


def test_one_call_names_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"_ZN4test4nameILi{number}EEEvv" for number in range(3)]
    known = kernels.demangle(names)
    assert list(known.values()) == [f"void test::name<{number}>()" for number in range(3)]
    monkeypatch.setenv("PATH", "/nowhere")
    assert kernels.demangle(names) == known, "asked once"
