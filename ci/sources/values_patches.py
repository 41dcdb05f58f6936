"""Edits that give the mma.sync forward a V whose head dim is not that of Q and K. Data.

Where the two are the same, every type is what it was, and so is the code. The backward needs no edit: it pads V, out
and their gradients to the larger head dim.
"""

from __future__ import annotations

from collections.abc import Mapping

from ci.sources.patch import Change, Edit

_API = "hopper/flash_api_stable.cpp"
_MAIN = "hopper/mainloop_fwd_sm80.hpp"
_V_TILE = "select<2, 1>(TileShape_MNK_PV{})"
_ARGUMENTS = "Split, PagedKVNonTMA, Has_softcap, PackGQA>(params, stream)"


def _tile(tensor: str) -> Change:
    """A tile of V, (keys, head dim of V)."""
    return Change(anchor=f"{tensor}, select<1, 2>(TileShape_MNK{{}})", replacement=f"{tensor}, {_V_TILE}")


def _columns(name: str, keys: str, thr_copy: str, bound: str) -> Change:
    """After the predicate of K's columns: that of V's."""
    return Change(
        anchor=bound,
        replacement=f"{bound}\n        decltype(auto) {name} = ::fa3::value_columns<kHeadDimV == kHeadDim, "
        f"decltype({_V_TILE})>({keys}, {thr_copy}, params.headdim_v);",
    )


def _bound(keys: str, places: str) -> str:
    return (
        f"for (int k = 0; k < size({keys}); ++k) "
        f"{{ {keys}(k) = get<1>({places}(_0{{}}, _0{{}}, k)) < get<1>(params.shape_K); }}"
    )


def _choice(dtype: str, dim: int, others: Mapping[str, int]) -> Change:
    """Before the kernel of equal head dims: the host code's choice of others, by what they are for."""
    call = f"return run_mha_fwd_<Arch, cutlass::{dtype}, {dim}, "
    lines = (f"if (params.{when}) {{ {call}{dim_v}, {_ARGUMENTS}; }}" for when, dim_v in others.items())
    return Change(
        anchor=f"{call}{dim},",
        replacement=f"#ifndef FLASHATTENTION_DISABLE_HDIMDIFF{dim}\n"
        f"                if constexpr (Arch < 90 && !Has_softcap) {{ {' '.join(lines)} }}\n"
        f"                #endif\n                {call}{dim},",
    )


_WIDER = {"dv > 128": 256, "dv != params.d": 128}
_NARROWER = {"dv <= 128": 128}

VALUES_PATCHES: tuple[Edit, ...] = (
    Edit(
        name="values-mainloop",
        file=_MAIN,
        why="V with a head dim of its own: upstream's class has the argument, and lays V out by K's",
        changes=(
            Change(anchor='#include "fa3_sinks.h"', replacement='#include "fa3_sinks.h"\n#include "fa3_values.h"'),
            Change(
                anchor="using SmemLayoutV = ",
                until=";",
                replacement="static_assert(kHeadDimV % kBlockKGmem == 0);\n"
                "    using SmemLayoutV = decltype(tile_to_shape(\n        SmemLayoutAtomQKV{},\n"
                "        make_shape(shape<1>(TileShape_MNK{}), Int<kHeadDimV>{}, Int<kStages>{})));",
            ),
            Change(
                anchor="make_ordered_layout(make_shape(shape<2>(TileShape_MNK{}),",
                replacement="make_ordered_layout(make_shape(Int<kHeadDimV>{},",
            ),
            _tile("local_tile(mV"),
            _tile("make_coord(offset_k, _0{}), mV)"),
            _tile("make_coord(seqlen_info.offset_k_new, _0{}), mVnew)"),
            _columns("tVpV", "tKVpKV", "gmem_thr_copy_QKV", _bound("tKVpKV", "tKVcKV")),
            _columns("tVpVg2s", "tKpKg2s", "gmem_thr_copy_kv_g2s", _bound("tKpKg2s", "tKcKg2s")),
            _columns("tVpVs2g", "tKpKs2g", "gmem_thr_copy_kv_s2g", _bound("tKpKs2g", "tKcKs2g")),
            Change(anchor=".with(tKVpKV(k) && predicate_n)", replacement=".with(tVpV(k) && predicate_n)"),
            Change(anchor="tVsV_cur, t0KcKg2s, tKpKg2s,", replacement="tVsV_cur, t0KcKg2s, tVpVg2s,"),
            Change(anchor="tVgV_cur, tKcKs2g, tKpKs2g,", replacement="tVgV_cur, tKcKs2g, tVpVs2g,"),
        ),
    ),
    Edit(
        name="values-kernel",
        file="hopper/flash_fwd_kernel_sm80.h",
        why="the same: the output has V's head dim",
        changes=(
            Change(
                anchor="Tensor tOrO = partition_fragment_C(tiled_mma, select<0, 2>(TileShape_MNK{}));",
                replacement="Tensor tOrO = partition_fragment_C("
                "tiled_mma, select<0, 1>(typename CollectiveMainloop::TileShape_MNK_PV{}));",
            ),
        ),
    ),
    Edit(
        name="values-host",
        file=_API,
        why="the same: kernels of the mma.sync families, and what they cannot do is refused with the arithmetic",
        changes=(
            Change(
                anchor='STD_TORCH_CHECK(::fa3::kArch == 90, "Only Hopper supports different V headdim");',
                replacement="#ifdef FLASHATTENTION_DISABLE_HDIMDIFF64\n"
                '        STD_TORCH_CHECK(false, "This flash attention build does not support different V headdim.");\n'
                "        #endif\n"
                "        STD_TORCH_CHECK(::fa3::kArch == 90 || softcap == 0.0, "
                '"below Hopper, different V headdim with softcap is not built");\n'
                "        STD_TORCH_CHECK(::fa3::kArch == 90 || "
                "round_up_headdim(head_size) == (head_size <= 64 ? 64 : 192), "
                '"different V headdim takes a build with head dim 64 or 192");',
            ),
            *(
                _choice(dtype, dim, others)
                for dtype in ("bfloat16_t", "half_t")
                for dim, others in ((64, _WIDER), (192, _NARROWER))
            ),
        ),
    ),
)
