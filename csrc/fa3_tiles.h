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

// Which head dims (rounded up) have a tile of ours; the others take upstream's.
constexpr bool has_own_tile(bool small_smem, int head_dim) {
    return head_dim <= 64 || (small_smem && head_dim > 192);
}

// 64: upstream's 128 x 112 on 4 warps needs more registers than there are, as does 128 x 96 with some masks: a thread
// holds 112 (96) scores and 64 sums of the output, beside fragments in flight. 64 columns leave room in every variant.
// Fewer columns cost little: of the loads that feed the MMAs, only Q's are repeated more often (40 LDSM for 128 HMMA
// instead of 56 for 192). Two such blocks share an SM, by registers, so that one computes while the other waits; 8
// warps of 16 rows instead would read K and V from shared memory twice as often.
constexpr Tile tile_64(Variant const&) {
    return {128, 64, 4, 1, false};
}

// 256: Q, K and V of 64 rows each are 96 KB.
constexpr Tile tile_256(Variant const&) {
    return {64, 64, 4, 1, false};
}

constexpr Tile forward_tile(bool, int head_dim, Variant const& variant) {
    return head_dim <= 64 ? tile_64(variant) : tile_256(variant);
}

}  // namespace fa3
