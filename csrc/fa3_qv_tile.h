// The forward kernels whose V has up to 512 columns: what they are called, and their tile. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// In the place of a kernel's element type: Q, K and V are of type T. K has up to 64 columns, V up to 512, and V's
// products with a second query may be added to the scores (qv; absorbed MLA).
template <typename T>
struct Qv {
    T element;
};

// 8 warps: 2 times 16 rows, and of each row 4 times 128 columns of V. A thread holds 64 sums of the output, 32
// registers of Qv, 4 of Q and 16 scores. Two stages of 32 keys and their V are 72 KB, and the parts of the scores that
// warps give each other 16 KB: 90,496 bytes with what lies around them.
//
// Of 64 rows a thread would hold 128 sums and 64 registers of Qv, which leaves 63 of 255 for all else; with Qv in
// shared memory (64 KB) there is room for one stage of 16 keys. Twice the rows would read K and V from L2 half as
// often, where there are 64 heads or more; the models that fit a GB10 have 16 to 32.
constexpr int kQvColumnGroups = 4;

constexpr Tile qv_tile() {
    return {32, 32, 8, 2, false};
}

}  // namespace fa3
