// Attention sinks: one more score a head, which takes part in the softmax and has no value. BSD-3-Clause, see LICENSE.
//
// A sink is counted when a row is finished: by the block that has all its keys, or by the combine kernel where keys
// are split. A row that sees no key has output 0 and the sink as its LSE. A null pointer means no sinks.
#pragma once

#include <cstdint>

#include <cute/tensor.hpp>

#include "cutlass/fast_math.h"
#include "utils.h"

namespace fa3 {

// Count a sink in a finished row. `lse` is its LSE (natural logarithm), `scale` the factor of its output.
CUTLASS_DEVICE void include_sink(float sink, float& lse, float& scale) {
    float const most = fmaxf(lse, sink);
    if (most == -INFINITY) {
        return;  // neither a key nor a sink
    }
    float const keys = __expf(lse - most);
    float const total = keys + __expf(sink - most);
    scale *= keys / total;
    lse = most + __logf(total);
}

// Whether this block has a part of its rows' keys only, as the epilogue decides it: the upper half of `split_idx` is
// the number of splits of this batch element, where lengths differ.
template <bool Split, bool Varlen>
CUTLASS_DEVICE bool is_part(int split_idx, int num_splits) {
    if constexpr (!Split || !Varlen) {
        return Split;
    }
    int const own = static_cast<int>(static_cast<uint32_t>(split_idx) >> 16);
    return (own > 0 ? own : num_splits) > 1;
}

// Count the sinks in a thread's rows of a finished tile. Rows of a packed tile belong to the heads of a group in turn.
template <bool PackGQA, typename TileShape, typename ThrMma, typename Rows>
CUTLASS_DEVICE void include_sinks(float const* sinks, Rows& lse, Rows& scale, ThrMma const& thr_mma, int m_block,
                                  int bidh, cutlass::FastDivmod const& qhead_per_khead_divmod) {
    using namespace cute;
    Tensor places = thr_mma.partition_C(make_identity_tensor(select<0, 1>(TileShape{})));
    Tensor rows = make_tensor(places.data(), flash::convert_layout_acc_rowcol(places.layout()))(_, _0{});
    CUTE_UNROLL
    for (int i = 0; i < size(lse); ++i) {
        int head = bidh;
        if constexpr (PackGQA) {
            int in_group;
            qhead_per_khead_divmod.divmod(in_group, m_block * get<0>(TileShape{}) + get<0>(rows(i)));
            head = bidh * qhead_per_khead_divmod.divisor + in_group;
        }
        include_sink(sinks[head], lse(i), scale(i));
    }
}

// The LSE of a row without a key.
CUTLASS_DEVICE float empty_lse(float const* sinks, int head) {
    return sinks == nullptr ? -INFINITY : sinks[head];
}

}  // namespace fa3
