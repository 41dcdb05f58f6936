"""Tiles that a kernel could have: which are legal, what arithmetic says of each, and the file that compiles one. Pure.

A candidate is compiled as a unit of its own, from the sources that the libraries are made of. The unit gives the tile,
so no file that ships changes, and no library's object either.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ci.plan.units import CXX_TYPES, Unit
from ci.verify import kernels
from ci.verify.loops import WAVE
from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.bench.bounds import FLOP_A_CLOCK, MUFU_LANES
from flash_attn3_sm121.errors import UsageError, VerifyError

SPEC = FAMILIES[Family.SM8X]
DTYPE = "bf16"
# Registers of a thread for sums and for operands that live through the loop. Of 255, the rest holds addresses and
# fragments in flight.
MOST_SUMS = 192
WORSE = 0.9  # of the table's share by arithmetic: what is below is not compiled


@dataclass(frozen=True, kw_only=True)
class Forward:
    """A forward tile with one stage of K and V. Each warp has whole rows of the scores."""

    head_dim: int
    block_m: int
    block_n: int
    warps: int
    q_in_regs: bool

    def __str__(self) -> str:
        return f"{self.block_m} x {self.block_n}, {self.warps} warps{', Q in registers' * self.q_in_regs}"

    @property
    def smem(self) -> int:
        return kernels.forward_bytes(kernels.Tile(stages=1, **vars(self)))

    @property
    def sums(self) -> int:
        """Registers of a thread: output, scores, and Q where it is kept."""
        rows = self.block_m // self.warps
        return rows * (self.head_dim + self.block_n) // 32 + self.q_in_regs * rows * self.head_dim // 64

    @property
    def asked(self) -> int:
        """Bytes that the tile asks of the L2 cache: K and V."""
        return 4 * self.block_n * self.head_dim

    @property
    def clocks(self) -> tuple[float, float, float]:
        """Of tensor cores, MUFU and shared memory for a tile. Every warp reads K, V, and Q where it is not kept."""
        pairs, queries = self.block_m * self.block_n, 0 if self.q_in_regs else 2 * self.block_m * self.head_dim
        moved = (self.warps + 1) * self.asked + queries
        return 4 * pairs * self.head_dim / FLOP_A_CLOCK, pairs / MUFU_LANES, moved / WAVE

    def text(self, variants: Sequence[frozenset[str]]) -> str:
        """The file that instantiates its kernel for each variant."""
        tile = f"{self.block_m}, {self.block_n}, {self.warps}, 1, {_word(self.q_in_regs)}"
        table = f"constexpr Tile forward_tile(int, int, Variant const&) {{ return {{{tile}}}; }}"
        head = f"{SPEC.effective_arch}, {self.head_dim}, {self.head_dim}, 1, {CXX_TYPES[DTYPE]}, {CXX_TYPES[DTYPE]}"
        names = ("causal", "local", "softcap", "varlen", "paged", "append", "qv", "packgqa", "split", "v_colmajor")
        lines = [
            f'#include "fa3_tile.h"\n\nnamespace fa3 {{\n{table}\n}}\n\n#include "flash_fwd_launch_template.h"\n\n'
        ]
        for flags in variants:
            words = _words(names, flags | {"packgqa"})
            lines.append(f"template void run_flash_fwd<{head}, {words}>(Flash_fwd_params&, cudaStream_t);\n")
        return "".join(lines)


@dataclass(frozen=True, kw_only=True)
class Backward:
    """A backward tile on 8 warps. `m_sdp`, `n_dkv`, `m_dq`: the warps along the first side of the products S and dP, dK
    and dV, and dQ; the others lie along the second side."""

    head_dim: int
    block_m: int
    block_n: int
    stages_do: int
    stages: int  # of Q
    m_sdp: int
    n_dkv: int
    m_dq: int
    v_in_regs: bool
    warps = 8

    def __str__(self) -> str:
        layout = f"warps {self.m_sdp}/{self.n_dkv}/{self.m_dq}{', V in registers' * self.v_in_regs}"
        return f"{self.block_m} x {self.block_n}, {layout}, {self.stages} + {self.stages_do} stages"

    @property
    def legal(self) -> bool:
        """Each product divides into MMAs of 16 x 8, and dQ into 16-byte stores."""
        m, n, d = self.block_m, self.block_n, self.head_dim
        sides = ((m, n, self.m_sdp), (n, d, self.n_dkv), (m, d, self.m_dq))
        fit = all(first % (16 * along) == 0 and second % (64 // along) == 0 for first, second, along in sides)
        return fit and m * d % 1024 == 0

    @property
    def smem(self) -> int:
        m, n, d = self.block_m, self.block_n, self.head_dim
        k, q = 2 * n * d, 2 * m * d * self.stages
        rows = 4 * (m + (self.stages - 1) * (-(-m // 64) * 64))  # LSE, and as much for dPsum
        main = k + (max(k, q) if self.v_in_regs else k + q) + 2 * m * d * self.stages_do + 2 * rows + 4 * m * n
        return max(main, 2 * k) + 256  # 2 * k: dK and dV, at the end

    @property
    def sums(self) -> int:
        """Registers of a thread: dK and dV, S and dP or dQ, and V where it is kept."""
        m, n, d = self.block_m, self.block_n, self.head_dim
        return (2 * n * d + max(2 * m * n, m * d) + self.v_in_regs * self.m_sdp * n * d // 2) // 256

    @property
    def asked(self) -> int:
        """Bytes that the tile asks of the L2 cache: Q and dO, and fp32 sums that are added to dQ there."""
        return 8 * self.block_m * self.head_dim

    @property
    def clocks(self) -> tuple[float, float, float]:
        m, n, d = self.block_m, self.block_n, self.head_dim
        sdp = 4 * m // self.m_sdp * d + (2 - self.v_in_regs) * 2 * n * self.m_sdp // 8 * d
        dkv = 4 * m * (n // self.n_dkv + d * self.n_dkv // 8)
        dq = 2 * n * (m // self.m_dq + d * self.m_dq // 8)
        moved = 8 * (sdp + dkv + dq) + 4 * m * d + 4 * m * n
        return 10 * m * n * d / FLOP_A_CLOCK, m * n / MUFU_LANES, moved / WAVE

    def text(self, variants: Sequence[frozenset[str]]) -> str:
        """The file that instantiates its kernel for each variant, and the helpers around it."""
        head = f"{SPEC.effective_arch}, {self.head_dim}, {self.block_m}, {self.block_n}, {CXX_TYPES[DTYPE]}"
        layout = f"{self.m_sdp}, {self.n_dkv}, {self.m_dq}, {_word(self.v_in_regs)}"
        tail = f"{self.stages_do}, {self.stages}, false, false, false, 2, {layout}>(Flash_bwd_params&, cudaStream_t)"
        names = ("causal", "local", "softcap", "varlen", "deterministic", "gqa")
        return '#include "flash_bwd_launch_template.h"\n\n' + "".join(
            f"template void run_flash_bwd<{head}, {_words(names, flags)}, {tail};\n" for flags in variants
        )


Trial = Forward | Backward


def _word(value: bool) -> str:
    return str(value).lower()


def _words(names: Sequence[str], flags: frozenset[str]) -> str:
    return ", ".join(_word(name in flags) for name in names)


def unit(trial: Trial, variants: Sequence[frozenset[str]]) -> Unit:
    """A candidate as a unit. Its kind has flags and costs; its name is none that the plan's costs are computed from."""
    kind = "fwd" if isinstance(trial, Forward) else "bwd"
    words = (trial, *("_".join(sorted(flags)) or "plain" for flags in variants))
    name = re.sub(r"\W+", "_", f"tile_{kind}_hd{trial.head_dim}_{'_'.join(map(str, words))}")
    return Unit(
        name=name, kind=kind, head_dim=trial.head_dim, kernels=len(variants), text=trial.text(variants),
        contents=(str(trial),),
    )  # fmt: skip


def share(trial: Trial) -> float:
    """The share of the peak where no unit's work overlaps, without issue, which only the machine code tells."""
    tensor, mufu, shared = trial.clocks
    return tensor / (tensor + mufu + shared)


def grid(direction: str, head_dim: int) -> Iterator[Trial]:
    """Every legal tile of a coarse grid. Of backward tiles that differ in stages alone: the most stages that fit."""
    if direction == "forward":
        for (m, warps), n, kept in product(((64, 4), (128, 4), (128, 8)), range(32, 193, 16), (False, True)):
            yield Forward(head_dim=head_dim, block_m=m, block_n=n, warps=warps, q_in_regs=kept)
        return
    sizes, along, stages = (32, 48, 64, 80, 96, 112, 128), (1, 2, 4, 8), ((2, 2), (2, 1), (1, 1))
    for m, n, m_sdp, n_dkv, m_dq, kept in product(sizes, sizes, along, along, along, (False, True)):
        trials = [
            Backward(
                head_dim=head_dim, block_m=m, block_n=n, stages=of_q, stages_do=of_do, m_sdp=m_sdp, n_dkv=n_dkv,
                m_dq=m_dq, v_in_regs=kept,
            )
            for of_q, of_do in stages
        ]  # fmt: skip
        if trials[0].legal:
            yield next((trial for trial in trials if trial.smem <= SPEC.smem_limit), trials[-1])


def candidates(
    direction: str, head_dim: int, table: Trial, *, most: int, only: Sequence[str] = ()
) -> tuple[tuple[Trial, ...], tuple[Trial, ...], Counter[str]]:
    """The tiles to compile beside the table's, those for a later search, and for which reasons others were left out.

    Arithmetic knows the best that a tile can do. The two best of each size stay; of equal ones, those nearest to the
    table's tile come first. `only`: these alone, by their names, however much they move through shared memory.
    """
    left, sizes = Counter[str](), Counter[tuple[int, int]]()
    found: list[Trial] = []
    for trial in sorted(grid(direction, head_dim), key=share, reverse=True):
        size = (trial.block_m, trial.block_n)
        fault = (
            "shared memory" if trial.smem > SPEC.smem_limit
            else "registers" if trial.sums > MOST_SUMS
            else "traffic of shared memory" if share(trial) < WORSE * share(table) and str(trial) not in only
            else "two better ones of the size" if sizes[size] == 2
            else ""
        )  # fmt: skip
        if trial == table:
            continue
        if fault:
            left[fault] += 1
        else:
            sizes[size] += 1
            found.append(trial)
    found.sort(key=lambda item: (-round(share(item), 3), abs(item.block_n - table.block_n)))
    if unknown := sorted({*only} - {str(trial) for trial in found}):
        raise UsageError(f"no candidate {unknown[0]!r}", hint=f"there are: {'; '.join(map(str, found))}")
    chosen = [trial for trial in found if not only or str(trial) in only][:most]
    return tuple(chosen), tuple(trial for trial in found if trial not in chosen), left


# A backward main loop's template arguments: stages, and after its flags how 8 warps lie in each product.
_LAYOUT = re.compile(r"BwdSm80<(\d+), (\d+), .*?arch::Sm80(?:, \w+){5}(?:, false){3}, 2, (\d+), (\d+), (\d+), (\w+)>")


def of_kernel(mangled: str) -> Trial:
    """The tile of a library's kernel, from its name.

    Raises:
        VerifyError: the kernel is none of a form that is searched here.
    """
    shape, layout = kernels.tile(mangled), _LAYOUT.search(kernels.demangle([mangled])[mangled])
    if shape is not None and layout is not None:
        stages, stages_do, m_sdp, n_dkv, m_dq = map(int, layout.groups()[:5])
        return Backward(
            head_dim=shape.head_dim, block_m=shape.block_m, block_n=shape.block_n, stages=stages, stages_do=stages_do,
            m_sdp=m_sdp, n_dkv=n_dkv, m_dq=m_dq, v_in_regs=layout[6] == "true",
        )  # fmt: skip
    if shape is None or shape.stages != 1 or kernels.kind(mangled) != "forward":
        raise VerifyError(f"expected a kernel with 8 warps, or forward with one stage, found {mangled}")
    return Forward(
        head_dim=shape.head_dim, block_m=shape.block_m, block_n=shape.block_n, warps=shape.warps,
        q_in_regs=shape.q_in_regs,
    )  # fmt: skip
