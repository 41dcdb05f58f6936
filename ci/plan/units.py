"""Translation units: a selection's template instantiations, grouped into .cu files of our own, as text. Pure.

nvcc runs two C++ front ends over each file before the first kernel is compiled, and again over what every variant of a
head dim shares; it needs more memory the more kernels a file holds. So neighbours (one head dim, one direction) share
a file up to a number of kernels. The grouping never looks at the machine: it decides the bytes of the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from ci.plan.profiles import Selection
from flash_attn3_sm121.arch import Family

CXX_TYPES = {"bf16": "cutlass::bfloat16_t", "fp16": "cutlass::half_t", "e4m3": "cutlass::float_e4m3_t"}
KV8 = "_kv8"  # behind a type of Q: K and V are e4m3
CXX_TYPES |= {f"{dtype}{KV8}": f"::fa3::Kv8<{CXX_TYPES[dtype]}>" for dtype in ("bf16", "fp16")}
FP8 = "e4m3"
QV = "_qv"  # behind a type: a second query for V, and V of more than 256 columns
CXX_TYPES |= {f"{dtype}{QV}": f"::fa3::Qv<{CXX_TYPES[dtype]}>" for dtype in ("bf16", "fp16")}

# Kernels a file may hold. Hopper's take more memory each, and most of the front end's time is theirs anyway.
KERNELS_PER_UNIT = {Family.SM80: 18, Family.SM8X: 18, Family.SM90: 10}

# Head dims of Q and K, and of V where it has another. Below Hopper, 512 columns of V take kernels of their own.
_HOPPER_HEAD_DIMS = ((64, 256), (64, 512), (192, 128))
_MMA_HEAD_DIMS = ((64, 128), (64, 256), (192, 128))
_QV_HEAD_DIMS = ((64, 512),)


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One explicit instantiation of the forward entry point."""

    arch: int
    dtype: str
    head_dim: int
    head_dim_v: int
    split: bool
    paged: bool
    softcap: bool
    packgqa: bool
    kernels: int

    @property
    def group(self) -> str:
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}_{self.head_dim_v}"
        if self.fp8:
            return f"fwd_fp8_hd{dims}"
        if self.qv:
            return f"fwd_qv_hd{dims}"
        return f"fwd_kv8_hd{dims}" if self.dtype.endswith(KV8) else f"fwd_hd{dims}"

    @property
    def fp8(self) -> bool:
        """Whether it is one of the mma.sync kernels in e4m3 (csrc/fa3_fp8.h)."""
        return self.dtype == FP8 and self.arch < 90

    @property
    def qv(self) -> bool:
        """Whether it is one of the mma.sync kernels with a second query (csrc/fa3_qv.h)."""
        return self.dtype.endswith(QV)

    @property
    def variant(self) -> str:
        words = {"paged": self.paged, "split": self.split, "softcap": self.softcap}
        if self.arch == 90:
            words["packgqa"] = self.packgqa and not (self.paged or self.split)
        return "_".join(word for word, present in words.items() if present) or "plain"

    @property
    def text(self) -> str:
        flags = (str(flag).lower() for flag in (self.split, self.paged, self.softcap, self.packgqa))
        arguments = (str(self.arch), CXX_TYPES[self.dtype], str(self.head_dim), str(self.head_dim_v), *flags)
        entry = f"void run_mha_fwd_<{', '.join(arguments)}>"
        if self.fp8 or self.qv:
            switches = [str(flag).lower() for flag in (self.split, self.paged, self.softcap)]
            call = f"::fa3::run_fp8<{', '.join((str(self.arch), str(self.head_dim), *switches))}>(params, stream);"
            if self.qv:
                kind = CXX_TYPES[self.dtype.removesuffix(QV)]
                call = f"::fa3::run_qv<{', '.join((str(self.arch), kind, *switches[:2]))}>(params, stream);"
            return f"template <> {entry}(Flash_fwd_params& params, cudaStream_t stream) {{\n  {call}\n}}\n"
        return f"template {entry}(Flash_fwd_params&, cudaStream_t);\n"


@dataclass(frozen=True, kw_only=True)
class Backward:
    """One specialisation of the backward entry point. `ordered`: the deterministic kernels of a family below Hopper."""

    arch: int
    dtype: str
    head_dim: int
    softcap: bool
    ordered: bool
    kernels: int

    @property
    def group(self) -> str:
        return f"bwd_ordered_hd{self.head_dim}" if self.ordered else f"bwd_hd{self.head_dim}"

    @property
    def variant(self) -> str:
        return "softcap" if self.softcap else "plain"

    @property
    def text(self) -> str:
        dtype, softcap = CXX_TYPES[self.dtype], str(self.softcap).lower()
        more = ", true" if self.ordered else ""
        head = f"template <> void run_mha_bwd_<{self.arch}, {dtype}, {self.head_dim}, {softcap}{more}>"
        body = f"run_mha_bwd_hdim{self.head_dim}<{self.arch}, {dtype}, {softcap}{more}>(params, stream);"
        return f"{head}(Flash_bwd_params& params, cudaStream_t stream) {{\n  {body}\n}}\n"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One file to compile. `kind` decides compiler and cost; `text` is the whole file."""

    name: str
    kind: str  # fwd, bwd, combine, prepare or api
    head_dim: int
    kernels: int  # expected number of __global__ functions
    text: str
    contents: tuple[str, ...]  # what it instantiates, for people
    e4m3: bool = False  # code that cannot convert e4m3 has none of it

    @property
    def is_cuda(self) -> bool:
        return self.kind != "api"

    @property
    def file(self) -> str:
        return f"{self.name}.{'cu' if self.is_cuda else 'cpp'}"

    @property
    def object(self) -> str:
        return f"{self.name}.o"


def _masks(chosen: Selection) -> int:
    """Mask template values: none, causal (always there), local."""
    return 2 + chosen.has("local")


def forwards(chosen: Selection) -> tuple[Forward, ...]:
    """Every forward instantiation that the host code of this selection refers to."""
    arch = chosen.spec.effective_arch
    hopper = chosen.family is Family.SM90
    modes = 1 + chosen.has("varlen") * (1 + chosen.has("append"))
    dims: list[tuple[int, int]] = [(dim, dim) for dim in chosen.head_dims]
    if chosen.has("diff_headdim"):
        pairs = _HOPPER_HEAD_DIMS if hopper else _MMA_HEAD_DIMS
        dims += [pair for pair in pairs if pair[0] in chosen.head_dims]
    instances = []
    switches = product(*(_switch(chosen, name) for name in ("paged", "split", "softcap")), (False, True))
    order = list(switches)
    for (dim, dim_v), (paged, split, softcap, pack), dtype in product(dims, order, chosen.dtypes):
        forced = paged or split or not hopper  # the host code always packs there, so there is no other instantiation
        if pack != forced and (forced or not chosen.has("packgqa")):
            continue
        if dtype == "e4m3" and dim_v > dim:
            continue  # the 64-with-larger-V kernels exist for 16-bit types only
        if softcap and dim_v != dim and not hopper:
            continue  # half as many kernels, and no model has both
        instances.append(
            Forward(
                arch=arch,
                dtype=dtype,
                head_dim=dim,
                head_dim_v=dim_v,
                split=split,
                paged=paged,
                softcap=softcap,
                packgqa=pack,
                kernels=_masks(chosen) * modes,
            )
        )
    kv8 = tuple(f"{dtype}{KV8}" for dtype in chosen.dtypes) if chosen.has("kv8") else ()
    fp8 = (FP8,) if chosen.has("fp8") and not hopper else ()
    equal = tuple((dim, dim) for dim in chosen.head_dims)
    own = (*_own_forwards(chosen, kv8, equal), *_own_forwards(chosen, fp8, equal))
    if chosen.has("qv") and chosen.has("diff_headdim") and not hopper:
        wide = tuple(pair for pair in _QV_HEAD_DIMS if pair[0] in chosen.head_dims)
        qv = tuple(f"{dtype}{QV}" for dtype in chosen.dtypes)
        own += tuple(item for item in _own_forwards(chosen, qv, wide) if not item.softcap)
    return (*instances, *own)


def _own_forwards(chosen: Selection, dtypes: Sequence[str], dims: Sequence[tuple[int, int]]) -> tuple[Forward, ...]:
    """mma.sync forward instances of types that upstream's kernels do not have. They append nothing to a cache."""
    switches = product(*(_switch(chosen, name) for name in ("softcap", "paged", "split")))
    return tuple(
        Forward(
            arch=chosen.spec.effective_arch,
            dtype=dtype,
            head_dim=dim,
            head_dim_v=dim_v,
            split=split,
            paged=paged,
            softcap=softcap,
            packgqa=True,
            kernels=_masks(chosen) * (1 + chosen.has("varlen")),
        )
        for (dim, dim_v), (softcap, paged, split), dtype in product(dims, switches, dtypes)
    )


def _switch(chosen: Selection, feature: str) -> tuple[bool, ...]:
    return (False, True) if chosen.has(feature) else (False,)


def backwards(chosen: Selection) -> tuple[Backward, ...]:
    """Every backward specialisation that the host code of this selection refers to."""
    instances = []
    dtypes = tuple(dtype for dtype in chosen.dtypes if dtype != "e4m3")
    varlen = 1 + chosen.has("varlen")
    hopper = chosen.family is Family.SM90
    orders = (False,) if hopper else _switch(chosen, "deterministic")
    switches = product(orders, chosen.backward_head_dims, _switch(chosen, "softcap"), dtypes)
    for ordered, dim, softcap, dtype in switches:
        # Hopper's have both, but for head dim 256, where none is deterministic.
        both = 2 if hopper and dim < 256 else 1
        attention = _masks(chosen) * varlen * 2 * both
        # There, head dim 192 has square tiles, and what ends dQ ends dK and dV.
        square = dim == 192 and chosen.family is Family.SM8X
        instances.append(
            Backward(
                arch=chosen.spec.effective_arch,
                dtype=dtype,
                head_dim=dim,
                softcap=softcap,
                ordered=ordered,
                kernels=attention + 2 * varlen - square,
            )
        )
    return tuple(instances)


def _pack(items: Iterable[Forward] | Iterable[Backward], limit: int) -> list[list[Forward | Backward]]:
    """Neighbours of one group together, up to `limit` kernels a pack (one item alone may exceed it).

    K and V in e4m3, or a second query: one variant a pack. Q in e4m3 too: none with softcap beside those without. So
    their files are the same in every profile with these types.
    """
    packs: list[list[Forward | Backward]] = []
    for item in items:
        last = packs[-1] if packs else None
        fits = last and last[0].group == item.group and sum(x.kernels for x in last) + item.kernels <= limit
        alone = item.dtype.endswith((KV8, QV)) and last and last[0].variant != item.variant
        if isinstance(item, Forward) and item.fp8:
            alone = last and last[0].softcap != item.softcap
        if last and fits and not alone:
            last.append(item)
        else:
            packs.append([item])
    return packs


def _tiles(item: Forward | Backward) -> str:
    """The tiles of this head dim and no other: a change of another one's must not compile this file anew."""
    if isinstance(item, Backward):
        return ""
    dim_v = "" if item.head_dim == item.head_dim_v else f"{item.head_dim_v}, "
    tile, more = f"tile_{item.head_dim}({dim_v}variant)", ""
    if item.dtype.endswith(KV8) and item.head_dim in (64, 128) and item.softcap and not item.paged:
        tile, more = f"tile_kv8({item.head_dim}, {tile}, variant)", '#include "fa3_tile_kv8.h"\n'
    if (item.head_dim, item.head_dim_v) == (64, 256) and item.split and not item.paged:
        tile, more = f"tile_values({item.head_dim_v}, {tile}, variant)", '#include "fa3_tile_values.h"\n'
    call = f"constexpr Tile forward_tile(int, int, Variant const& variant) {{ return {tile}; }}"
    return f'#include "fa3_tile_{item.head_dim}.h"\n{more}\nnamespace fa3 {{\n{call}\n}}\n\n'


def _kernel_unit(pack: Sequence[Forward | Backward]) -> Unit:
    first = pack[0]
    kind = "fwd" if isinstance(first, Forward) else "bwd"
    contents = tuple(f"{item.variant} {item.dtype}" for item in pack)
    dtypes = dict.fromkeys(item.dtype.removesuffix(KV8).removesuffix(QV) for item in pack)  # the group says it
    fp8 = isinstance(first, Forward) and first.fp8
    own = "fa3_fp8.h" if fp8 else "fa3_qv.h" if first.dtype.endswith(QV) else ""
    words = [first.group, *dict.fromkeys(item.variant for item in pack), *([] if fp8 else dtypes)]
    head = f'#include "{own}"\n\n' if own else _tiles(first) + f'#include "flash_{kind}_launch_template.h"\n\n'
    text = head + "".join(item.text for item in pack)
    return Unit(
        name="_".join(words),
        kind=kind,
        head_dim=first.head_dim,
        kernels=sum(item.kernels for item in pack),
        text=text,
        contents=contents,
        e4m3=fp8 or first.dtype.endswith(KV8),
    )


def units(chosen: Selection) -> tuple[Unit, ...]:
    """Every file of a family library, in link order."""
    limit = KERNELS_PER_UNIT[chosen.family]
    packs = _pack(forwards(chosen), limit) + _pack(backwards(chosen), limit)
    made = [_kernel_unit(pack) for pack in packs]
    if chosen.has("split"):
        made.append(_wrapper("combine", "flash_fwd_combine.cu", kernels=54))
    # The scheduler's metadata op refers to it even where no varlen kernel is built.
    made.append(_wrapper("prepare", "flash_prepare_scheduler.cu", kernels=12))
    made.append(_wrapper("api", "flash_api_stable.cpp", kernels=0))
    return tuple(made)


def _wrapper(kind: str, source: str, *, kernels: int) -> Unit:
    return Unit(
        name=kind, kind=kind, head_dim=0, kernels=kernels, text=f'#include "{source}"\n', contents=(f"{source}",)
    )
