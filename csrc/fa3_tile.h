// What a forward tile is, and what it may depend on. BSD-3-Clause, see LICENSE.
//
// A tile is legal if
//   - block_m is a multiple of 16 * warps (one MMA row block a warp) and at most 32 * warps (a row's owner in the
//     epilogue is one thread),
//   - block_n is a multiple of 16 (two MMA columns at once),
//   - block_m does not depend on the variant: get_scheduler_metadata() counts row blocks before the call that takes
//     them, and must count the same ones.
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
    bool kv8;  // K and V are e4m3, whose bytes take a half more of their shared memory
};

// Whether a family's forward kernels have a tile of ours: all of them where shared memory is small, and head dim 64
// everywhere; the others of the large families take upstream's.
constexpr bool has_own_tile(bool small_smem, int head_dim) {
    return small_smem || head_dim <= 64;
}

}  // namespace fa3
