// V with a head dim other than that of Q and K. BSD-3-Clause, see LICENSE.
#pragma once

#include <cute/tensor.hpp>

namespace fa3 {

// Which columns of V a thread copies: those of K's (`keys`) where the head dims are the same.
template <bool Same, class TileShape, class ThrCopy, class Predicate>
CUTLASS_DEVICE decltype(auto) value_columns(Predicate& keys, ThrCopy const& thr_copy, int headdim_v) {
    if constexpr (Same) {
        return (keys);
    } else {
        using namespace cute;
        Tensor places = thr_copy.partition_S(make_identity_tensor(TileShape{}));
        Tensor within = make_tensor<bool>(make_shape(size<2>(places)));
        CUTE_UNROLL
        for (int k = 0; k < size(within); ++k) {
            within(k) = get<1>(places(_0{}, _0{}, k)) < headdim_v;
        }
        return within;
    }
}

}  // namespace fa3
