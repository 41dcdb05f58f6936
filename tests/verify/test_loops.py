"""The inner loop in a listing of machine code: the right one of several, and its instructions by class."""

from __future__ import annotations

from ci.verify import kernels
from ci.verify.kernels import loop_of
from tests.fakes.doctored import forward_name

NAME = forward_name(causal=False)  # a tile of 128 x 112, head dim 64, four warps: 224 tensor-core instructions a warp
MMA, EXP, ADD = "HMMA.16816.F32.BF16 R4, R8, R12, R4", "MUFU.EX2 R1, R1", "FADD.FTZ R1, R1, R2"


def listing(*instructions: str) -> str:
    """`cuobjdump -sass` of one kernel, sixteen bytes an instruction."""
    lines = (
        f"        /*{at * 16:04x}*/                   {text} ;   /* 0x0 */" for at, text in enumerate(instructions)
    )
    return "\n".join(("arch = sm_121", f"\t\tFunction : {NAME}", *lines)) + "\n"


def loop(*instructions: str) -> dict[str, int]:
    return dict(kernels.parse_sass(listing(*instructions))["sm_121", NAME].loop)


def test_of_the_loops_inside_the_tiles_loop_the_shortest_counts() -> None:
    first, masked, plain = (
        [MMA, MMA, ADD, ADD],
        [MMA, MMA, "ISETP.GT.AND P0, PT, R1, R2, PT", EXP],
        [MMA, MMA, "NOP"],
    )
    # The first tile of keys is multiplied before the loops over the others, inside the loop over tiles of queries.
    outer = ["S2R R0, SR_TID.X", *first, *masked, "@P0 BRA 0x50", *plain, "@!P1 BRA 0xa0", "@P2 BRA 0x10", "EXIT"]
    assert loop(*outer) == {
        "instructions": 4, "tensor": 2, "mufu": 0, "fp": 0, "integer": 0, "shared": 0, "spills": 0,
    }  # fmt: skip


def test_a_loop_that_is_entered_in_its_middle_is_one() -> None:
    body = ["EXIT", MMA, MMA, ADD, "@P0 BRA 0x10", MMA, EXP, "@P1 BRA 0x30", "EXIT"]
    assert loop(*body) == {
        "instructions": 7, "tensor": 3, "mufu": 1, "fp": 1, "integer": 0, "shared": 0, "spills": 0,
    }  # fmt: skip


def test_shared_memory_by_its_width_and_instructions_by_their_class() -> None:
    waves = {
        "LDSM.16.M88.4 R4, [R1]": 4, "LDSM.16.MT88.2 R4, [R1]": 2, "LDSM.16.M88 R4, [R1]": 1, "LDS R4, [R1]": 1,
        "STS.64 [R1], R4": 2, "LDS.128 R4, [R1]": 4, "LDGSTS.E.BYPASS.LTC128B.128 [R1], desc[UR4][R2.64]": 4,
        "SHFL.BFLY PT, R1, R1, 0x1, 0x1f": 1,
    }  # fmt: skip
    assert loop(MMA, *waves, "BRA 0x0")["shared"] == sum(waves.values())
    counted = loop(
        MMA, "@!P0 FFMA R1, R2, R3, R4", "IMAD.WIDE R2, R1, R1, R2", "I2F.RP R1, R2", "STL [R1], R2", "BRA 0x0"
    )
    assert (counted["fp"], counted["integer"], counted["spills"]) == (1, 1, 1)


def test_a_loop_is_a_tiles_or_nothing() -> None:
    assert loop(MMA, "EXIT") == {} and loop_of(NAME, {}) == {}
    assert loop_of(NAME, {"tensor": 224}) == {"tensor": 224, "warps": 4}
    assert loop_of(NAME, {"tensor": 112}) == {}, "eight warps do not share a tile of four"
    assert loop_of(NAME, {"tensor": 100}) == {} and loop_of("_Znew", {"tensor": 224}) == {}
