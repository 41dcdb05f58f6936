// Tiles of K and V in e4m3, widened in shared memory to what the 16-bit MMAs read. BSD-3-Clause, see LICENSE.
//
// cp.async brings a tile's bytes to a place of their own. Once they have landed, each thread widens the bytes that it
// has copied itself, and asks for the next tile's in their place: nobody else touches these bytes, so that they need no
// barrier, and they travel during a whole step. Every e4m3 number is one of bf16 and of fp16, and NaN stays NaN.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cute/tensor.hpp>

#include "fa3_kv8.h"

namespace fa3 {

// The shared memory of a main loop, and behind it the bytes of a tile of K and one of V.
template <class Plain, int kBytes>
struct Staged : Plain {
    alignas(128) cutlass::float_e4m3_t staged[kBytes];
};

template <int kRows, int kDim, int kThreads>
struct Stage {
    using Byte = cutlass::float_e4m3_t;
    // The threads of a row as PagedKVManager has them: which bytes are a thread's own does not depend on pages.
    static constexpr int kPerRow = (kDim % 128 == 0 ? 128 : kDim % 64 == 0 ? 64 : 32) / 16;
    using Threads = cute::Layout<cute::Shape<cute::Int<kThreads / kPerRow>, cute::Int<kPerRow>>,
                                 cute::Stride<cute::Int<kPerRow>, cute::_1>>;
    using Columns = cute::Layout<cute::Shape<cute::_1, cute::_16>>;
    using Load = decltype(cute::make_tiled_copy(
        cute::Copy_Atom<cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>, Byte>{}, Threads{}, Columns{}));
    using Tile = cute::Shape<cute::Int<kRows>, cute::Int<kDim>>;
    static constexpr bool kEven = kRows % (kThreads / kPerRow) == 0;

    Byte* staged;
    int thread;

    CUTLASS_DEVICE auto keys() const { return tile(staged); }
    CUTLASS_DEVICE auto values() const { return tile(staged + kRows * kDim); }

    // Ask for a tile of K and of V. Rows from `rows` on are zeros if Masked, and so are columns from `dim` on.
    template <bool Masked, class Keys, class Values>
    CUTLASS_DEVICE void load(Keys const& from_k, Values const& from_v, int rows, int dim) const {
        load_tile<Masked>(from_k, keys(), rows, dim);
        load_tile<Masked>(from_v, values(), rows, dim);
    }

    // Write both tiles, which must have landed, as 16-bit numbers. What is read here may be overwritten afterwards by
    // this thread's next load: the numbers that come of it are there before.
    template <class Keys, class Values>
    CUTLASS_DEVICE void widen(Keys&& to_k, Values&& to_v) const {
        widen_tile(keys(), to_k);
        widen_tile(values(), to_v);
    }

  private:
    CUTLASS_DEVICE static auto tile(Byte* bytes) {
        return cute::make_tensor(cute::make_smem_ptr(bytes), cute::make_layout(Tile{}, cute::LayoutRight{}));
    }

    // A tile's places (row, column) as the thread's copies have them.
    CUTLASS_DEVICE auto places() const {
        return Load{}.get_thread_slice(thread).partition_S(cute::make_identity_tensor(Tile{}));
    }

    template <bool Masked, class From, class To>
    CUTLASS_DEVICE void load_tile(From const& from, To&& to, int rows, int dim) const {
        using namespace cute;
        Load copy;
        Tensor source = copy.get_thread_slice(thread).partition_S(from);
        Tensor target = copy.get_thread_slice(thread).partition_D(to);
        Tensor at = places();
        CUTE_UNROLL
        for (int m = 0; m < size<1>(target); ++m) {
            int const row = get<0>(at(_0{}, m, _0{}));
            if (kEven || row < kRows) {
                CUTE_UNROLL
                for (int k = 0; k < size<2>(target); ++k) {
                    bool const there = (!Masked || row < rows) && get<1>(at(_0{}, _0{}, k)) < dim;
                    cute::copy(copy.with(there), source(_, m, k), target(_, m, k));
                }
            }
        }
    }

    template <class From, class To>
    CUTLASS_DEVICE void widen_tile(From const& from, To& to) const {
        using namespace cute;
        using Element = typename remove_cvref_t<To>::value_type;
        using Store = decltype(make_tiled_copy(Copy_Atom<UniversalCopy<uint128_t>, Element>{}, Threads{}, Columns{}));
        Tensor source = Load{}.get_thread_slice(thread).partition_D(from);
        Tensor target = Store{}.get_thread_slice(thread).partition_D(to);
        Tensor at = places();
        CUTE_UNROLL
        for (int m = 0; m < size<1>(source); ++m) {
            if (kEven || get<0>(at(_0{}, m, _0{})) < kRows) {
                CUTE_UNROLL
                for (int k = 0; k < size<2>(source); ++k) {
                    uint4 const bytes = *reinterpret_cast<uint4 const*>(&source(_0{}, m, k));
                    *reinterpret_cast<uint4*>(&target(_0{}, m, k)) = widened<Element>(bytes.x, bytes.y);
                    *reinterpret_cast<uint4*>(&target(_8{}, m, k)) = widened<Element>(bytes.z, bytes.w);
                }
            }
        }
    }

    template <typename Element>
    CUTLASS_DEVICE static uint4 widened(uint32_t four, uint32_t more) {
        return {two<Element>(four), two<Element>(four >> 16), two<Element>(more), two<Element>(more >> 16)};
    }

    // Two numbers. Volatile keeps it, and so the read of its bytes, before the copies that follow.
    template <typename Element>
    CUTLASS_DEVICE static uint32_t two(uint32_t bytes) {
        uint32_t halves = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
        __trap();  // no instruction converts e4m3 there; the host code refuses such a device
#else
        asm volatile("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(bytes)));
#endif
        if constexpr (cute::is_same_v<Element, cutlass::half_t>) {
            return halves;
        } else {
            float2 const both = __half22float2(reinterpret_cast<__half2 const&>(halves));
            __nv_bfloat162 const made = __floats2bfloat162_rn(both.x, both.y);
            return reinterpret_cast<uint32_t const&>(made);
        }
    }
};

}  // namespace fa3
