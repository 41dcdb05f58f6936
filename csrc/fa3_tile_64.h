// Forward tiles of head dim 64, in every mma.sync family. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// 64: upstream's 128 x 112 on 4 warps needs more registers than there are, as does 128 x 96 with some masks: a thread
// holds 112 (96) scores and 64 sums of the output, beside fragments in flight. 64 columns leave room. Fewer columns
// cost little: of the loads that feed the MMAs, only Q's are repeated more often (40 LDSM for 128 HMMA instead of 56
// for 192). Two such blocks share an SM, by registers, so that one computes while the other waits; 8 warps of 16 rows
// instead would read K and V from shared memory twice as often.
constexpr Tile tile_64(Variant const& v) {
    // Masks beside tanh, page pointers for appending under a causal mask, and appending under a mask to a cache without
    // pages (bf16 spills there since sinks are read, fp16 did under a window before), keep more alive: 48 columns. So
    // do masks beside bytes of e4m3 (124 bytes too many for packed sequences under a causal mask).
    bool const busy = (v.softcap && (v.causal || v.local)) || (v.append && v.paged && v.causal) ||
                      (v.append && (v.causal || v.local) && !v.paged && !v.varlen_split) ||
                      (v.kv8 && (v.causal || v.local));
    // The one variant with everything at once but a page table still spills at 48.
    bool const busiest = v.softcap && v.local && v.append && v.varlen_split && !v.paged;
    int const few = busiest ? 32 : 48;
    return {128, busy ? few : 64, 4, 1, false};
}

// A wider V: with 4 warps a thread would hold as many sums of the output as V has columns. With 8 it holds half as
// many, 64 or 128, beside 32 scores.
constexpr Tile tile_64(int dim_v, Variant const& v) {
    return dim_v <= 64 ? tile_64(v) : Tile{128, 64, 8, 1, false};
}

}  // namespace fa3
