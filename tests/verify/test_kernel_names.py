"""Tiles read from mangled names, in which a repeated type is a reference and not spelled again."""

from __future__ import annotations

import pytest

from ci.verify import kernels

HEAD = "_ZN7cutlass13device_kernelIN5flash19enable_sm80_to_sm89INS1_16FlashAttn{0}Sm80INS1_25CollectiveMainloop{0}Sm80I"
TAIL = "EN4cute5tupleIJNS5_1C{}EEENS_10bfloat16_tEfNS_4arch4Sm80ELb1ELb0ELb0ELb1ELb0"


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
    name = HEAD.format(direction) + "Li2ELi2" + TAIL.format(sizes)
    assert kernels.tile(name) == expected
    variant = kernels.variant(name)
    assert variant is not None
    assert variant.head_dim == expected[2]


def test_other_kernels_have_no_tile() -> None:
    assert kernels.tile("_ZN5flash32prepare_varlen_num_blocks_kernelILi1ELb0EEEviii") is None
