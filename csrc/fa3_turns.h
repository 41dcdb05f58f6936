// Turns: blocks add to one place of memory in an order that is always the same. BSD-3-Clause, see LICENSE.
//
// A counter in global memory says how many blocks have had their turn. A block may only wait for blocks that the grid
// starts before it: then the first block that has not ended waits for nobody, and all end.
#pragma once

#include "cutlass/cutlass.h"

namespace fa3 {

// In place of cutlass::GenericBarrier, whose threads of other warps would go on while the first one waits.
struct Turns {
    // Wait until `turn` blocks have had theirs. All threads of the block call it.
    CUTLASS_DEVICE static void wait_eq(int* counters, int thread, int counter, int turn) {
        if (thread == 0) {
            while (atomicAdd(counters + counter, 0) != turn) {
                __nanosleep(32);
            }
            __threadfence();
        }
        __syncthreads();
    }

    // What the block has added is seen by whoever's turn is next. All threads of the block call it.
    CUTLASS_DEVICE static void arrive_inc(int* counters, int thread, int counter) {
        __syncthreads();
        if (thread == 0) {
            __threadfence();
            atomicAdd(counters + counter, 1);
        }
    }
};

// The place of a block of rows or keys among the counters of its head and sequence. Those of packed sequences lie one
// after another, so that it is within bounds whatever the caller says that the longest sequence has.
template <int kBlock>
CUTLASS_DEVICE int turn_place(bool packed, int offset, int block, int sequences, int heads) {
    return (packed ? offset / kBlock + block : block * sequences) * heads;
}

}  // namespace fa3
