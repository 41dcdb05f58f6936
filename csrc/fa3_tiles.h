// Forward tiles of the mma.sync families: ours where upstream's do not fit or spill. BSD-3-Clause, see LICENSE.
//
// The budget of a block on 12.x (and 8.6, 8.9) is 99 KB of shared memory and 255 registers a thread. Every tile below
// fits the first in all variants (tests/harness/test_tiles.py proves it without a compiler for CUDA; a static_assert in
// the launch templates does at compile time), and those of head dims 64 and 128 the second, without a spill.
// docs/kernels-12.1.md lists what the compiled kernels really take. Speed is a prediction from arithmetic: none of this
// has run on a GB10.
//
// A tile is legal if
//   - block_m is a multiple of 16 * warps (one MMA row block a warp) and at most 32 * warps (a row's owner in the
//     epilogue is one thread),
//   - block_n is a multiple of 16 (two MMA columns at once),
//   - block_m does not depend on the variant: get_scheduler_metadata() counts row blocks before the call that uses
//   them,
//     and must count the same ones.
#pragma once

namespace fa3 {

struct Tile {
    int block_m;
    int block_n;
    int warps;
    int stages;      // of K and V in shared memory
    bool q_in_regs;  // Q is kept in registers, and its shared memory is V's
};

struct Variant {
    bool causal;
    bool local;
    bool paged;
    bool varlen_split;
    bool softcap;
    bool append;
};

// Whether a family's forward kernels have a tile of ours: all of them where shared memory is small, and head dim 64
// everywhere; the others of the large families take upstream's.
constexpr bool has_own_tile(bool small_smem, int head_dim) {
    return small_smem || head_dim <= 64;
}

// 64: upstream's 128 x 112 on 4 warps needs more registers than there are, as does 128 x 96 with some masks: a thread
// holds 112 (96) scores and 64 sums of the output, beside fragments in flight. 64 columns leave room. Fewer columns
// cost little: of the loads that feed the MMAs, only Q's are repeated more often (40 LDSM for 128 HMMA instead of 56
// for 192). Two such blocks share an SM, by registers, so that one computes while the other waits; 8 warps of 16 rows
// instead would read K and V from shared memory twice as often.
constexpr Tile tile_64(Variant const& v) {
    // Masks beside tanh, and page pointers for appending under a causal mask, keep more alive: 48 columns.
    bool const busy = (v.softcap && (v.causal || v.local)) || (v.append && v.paged && v.causal);
    // The one variant with everything at once but a page table still spills at 48.
    bool const busiest = v.softcap && v.local && v.append && v.varlen_split && !v.paged;
    int const few = busiest ? 32 : 48;
    return {128, busy ? few : 64, 4, 1, false};
}

// 96: 128 rows of Q are 24 KB, 64 of K and V 12 KB each; two blocks an SM. Masks and splits that keep more registers
// alive take 48 columns.
constexpr Tile tile_96(Variant const& v) {
    return {128, v.local || v.varlen_split ? 48 : 64, 4, 1, false};
}

// 128: a row's sums are 128 floats; 8 warps hold them with 16 rows each. Q lies in registers, so that its 32 KB are V's
// later, and 128 columns of K fit beside.
constexpr Tile tile_128(Variant const& v) {
    // 128 columns leave no register for page pointers under a causal mask, or for what a split over lengths keeps.
    bool const busy =
        v.varlen_split || (v.causal && v.paged && !v.append) || (v.causal && v.softcap && v.append && !v.paged);
    int const full = busy ? 112 : 128;
    int const window = v.softcap ? 80 : 96;
    return {128, v.local ? window : full, 8, 1, true};
}

// 192: 48 KB of Q. In registers it makes room for 96 columns of K and V; where something else needs the registers, it
// stays in shared memory beside 64 columns.
constexpr Tile tile_192(Variant const& v) {
    bool const busy = v.append || v.local || v.varlen_split || v.paged;
    return {128, busy ? 64 : 96, 8, 1, !busy};
}

// 256: 64 rows each of Q, K and V are 96 KB. 128 rows of Q fit only in registers, which spills: 4 warps hold 16 rows
// each with the same 128 sums a thread, and nothing else.
constexpr Tile tile_256(Variant const&) {
    return {64, 64, 4, 1, false};
}

// `head_dim` is rounded up to a built one.
constexpr Tile forward_tile(int head_dim, Variant const& variant) {
    if (head_dim <= 64) {
        return tile_64(variant);
    }
    if (head_dim <= 96) {
        return tile_96(variant);
    }
    if (head_dim <= 128) {
        return tile_128(variant);
    }
    return head_dim <= 192 ? tile_192(variant) : tile_256(variant);
}

}  // namespace fa3
