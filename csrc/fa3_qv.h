// V of up to 512 columns beside K of up to 64, and a second query for V: S = Q K^T + Qv V^T, O = P V (absorbed MLA).
// BSD-3-Clause, see LICENSE.
//
// A tile's V is read from memory once and serves both products. Four warps share 16 rows, and each has a quarter of the
// columns of Qv, V, Q, K and the output. So a warp multiplies a part of its rows' scores, the warps give each other
// their parts through shared memory, and each adds up all four: no product is made twice, and P stays in registers.
#pragma once

#include "fa3_kv8.h"
#include "fa3_numbers.h"
#include "fa3_qv_tile.h"

namespace fa3 {

// What tile_size.h asks for: there are no other kernels in a file with this header.
constexpr Tile forward_tile(int, int, Variant const&) {
    return qv_tile();
}

template <typename T>
struct Stored<Qv<T>> {
    using Q = T;
    using KV = T;
    static constexpr bool kWidened = false;
};

}  // namespace fa3

#include "flash_fwd_launch_template.h"

namespace flash {

// The main loop. Its arguments, and how K and V are copied, are those of upstream's.
template <int kNWarps, int Stages, bool Q_in_regs, class TileShape_MNK_, int kHeadDimV, class T, class ElementAccum_,
          class ArchTag_, bool Is_causal_, bool Is_local_, bool Has_softcap_, bool Varlen_, bool PagedKV_,
          bool AppendKV_, bool PackGQA_, bool Split_>
struct CollectiveMainloopFwdSm80<kNWarps, Stages, Q_in_regs, TileShape_MNK_, kHeadDimV, ::fa3::Qv<T>, ElementAccum_,
                                 ArchTag_, Is_causal_, Is_local_, Has_softcap_, Varlen_, PagedKV_, AppendKV_, PackGQA_,
                                 Split_>
    : CollectiveMainloopFwdSm80<kNWarps, Stages, Q_in_regs, TileShape_MNK_, kHeadDimV, T, ElementAccum_, ArchTag_,
                                Is_causal_, Is_local_, Has_softcap_, Varlen_, PagedKV_, AppendKV_, PackGQA_, Split_> {
    using Base =
        CollectiveMainloopFwdSm80<kNWarps, Stages, Q_in_regs, TileShape_MNK_, kHeadDimV, T, ElementAccum_, ArchTag_,
                                  Is_causal_, Is_local_, Has_softcap_, Varlen_, PagedKV_, AppendKV_, PackGQA_, Split_>;
    using typename Base::Arguments, typename Base::BlockMN_t, typename Base::Element, typename Base::SeqlenInfo_t;
    using typename Base::TileShape_MNK_PV;
    static constexpr int kBlockM = Base::kBlockM, kBlockN = Base::kBlockN, kHeadDim = Base::kHeadDim;
    static constexpr int kThreads = Base::NumMmaThreads, kGroups = ::fa3::kQvColumnGroups, kRowGroups = kBlockM / 16;
    static constexpr int kScoresThreads = 32 * kRowGroups;
    static constexpr int kColumns = kHeadDimV / kGroups, kTiles = kBlockN / 8;
    static_assert(Stages == 2 && !Q_in_regs && !AppendKV_ && !Has_softcap_ && kNWarps == kRowGroups * kGroups);
    static_assert(kHeadDim == 16 * kGroups && kColumns % 64 == 0 && kBlockN % 16 == 0);

    // The kernel takes each warp to have rows of its own, and a thread to have a part of block_m by that.
    using TileShape_MNK = Shape<Int<kBlockM * kGroups>, Int<kBlockN>, Int<kHeadDim>>;
    using ScoresShape = Shape<Int<kBlockM>, Int<kBlockN>>;
    // Which thread has which scores: all warps of a row have the same.
    using ScoresMma =
        TiledMMA<typename Base::MMA_Atom_Arch, Layout<Shape<Int<kRowGroups>, _1, _1>>, Tile<Int<kBlockM>, _16, _16>>;
    // And which of the output. A warp's columns are neighbours.
    using TiledMma = TiledMMA<
        typename Base::MMA_Atom_Arch, Layout<Shape<Int<kRowGroups>, Int<kGroups>, _1>>,
        Tile<Int<kBlockM>, Layout<Shape<_8, Int<kGroups>, Int<kColumns / 8>>, Stride<_1, Int<kColumns>, _8>>, _16>>;

    // Qv is on its way to registers in the second stage of V, Q in the place of the scores.
    struct TensorStorage : cute::aligned_struct<128> {
        cute::array_aligned<Element, Stages * kBlockN * kHeadDimV> smem_v;
        cute::array_aligned<Element, Stages * kBlockN * kHeadDim> smem_k;
        cute::array_aligned<float4, kNWarps * kTiles * 32> partial;
    };
    static_assert(kBlockM <= kBlockN && kBlockM * kHeadDim * sizeof(Element) <= sizeof(float4) * kNWarps * kTiles * 32);

    template <int kRows, int kDim>
    using SmemLayout = decltype(tile_to_shape(typename Base::SmemLayoutAtomQKV{}, Shape<Int<kRows>, Int<kDim>>{}));

    struct Params : Base::Params {
        Element const* const ptr_Qv;
        typename Base::StrideQK const stride_Qv;
        typename Base::StrideQPacked const stride_Qv_packed;
    };

    static Params to_underlying_arguments(Arguments const& args) {
        static_assert(PackGQA_, "below Hopper the host code always packs");
        auto const& stride = args.stride_Qv;
        int const heads = cute::ceil_div(get<2>(args.shape_Q), get<2>(args.shape_K));
        return {Base::to_underlying_arguments(args), args.ptr_Qv, stride,
                make_stride(make_stride(get<2>(stride), get<0>(stride)), get<1>(stride), get<2>(stride) * heads,
                            get<3>(stride))};
    }

    template <class Scores, class Tile>
    CUTLASS_DEVICE static void multiply_columns(Scores& scores, uint32_t const (&a)[4], Tile const& tile, int column) {
        CUTE_UNROLL
        for (int n = 0; n < kTiles; n += 2) {
            uint32_t b[4];
            tile.read(b, n * 8, column);
            CUTE_UNROLL
            for (int i = 0; i < 2; ++i) {
                multiply(scores, n + i, a, b[2 * i], b[2 * i + 1]);
            }
        }
    }

    // Sums of 16 rows and 8 columns, plus 16 x 16 by 16 x 8 numbers.
    template <class Sums>
    CUTLASS_DEVICE static void multiply(Sums& c, int n, uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
        Base::MMA_Atom_Arch::MMA_Op::fma(c(0, 0, n), c(1, 0, n), c(2, 0, n), c(3, 0, n), a[0], a[1], a[2], a[3], b0, b1,
                                         c(0, 0, n), c(1, 0, n), c(2, 0, n), c(3, 0, n));
    }

    // Output of this warp's rows and columns: O += P V.
    template <class Out, class Scores, class Tile>
    CUTLASS_DEVICE static void multiply_pv(Out& out, Scores const& p, Tile const& v) {
        CUTE_UNROLL
        for (int n = 0; n < kTiles; n += 2) {
            uint32_t a[4];
            CUTE_UNROLL
            for (int i = 0; i < 4; ++i) {
                a[i] = ::fa3::rounded<Element>(p(i % 2 * 2, 0, n + i / 2), p(i % 2 * 2 + 1, 0, n + i / 2));
            }
            CUTE_UNROLL
            for (int d = 0; d < kColumns / 8; d += 2) {
                uint32_t b[4];
                v.template read<true>(b, n * 8, d * 8);
                multiply(out, d, a, b[0], b[1]);
                multiply(out, d + 1, a, b[2], b[3]);
            }
        }
    }

    // Add up the parts of the scores that the warps of a row have; the same sum in all of them.
    template <class Scores>
    CUTLASS_DEVICE static void add_parts(Scores& scores, float4* const partial, int warp, int lane) {
        auto part = [&](int of, int n) -> float4& { return partial[(of * kTiles + n) * 32 + lane]; };
        CUTE_UNROLL
        for (int n = 0; n < kTiles; ++n) {
            part(warp, n) = make_float4(scores(0, 0, n), scores(1, 0, n), scores(2, 0, n), scores(3, 0, n));
        }
        __syncthreads();
        CUTE_UNROLL
        for (int n = 0; n < kTiles; ++n) {
            float4 sum = part(warp % kRowGroups, n);
            CUTE_UNROLL
            for (int group = 1; group < kGroups; ++group) {
                float4 const more = part(group * kRowGroups + warp % kRowGroups, n);
                sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
            }
            scores(0, 0, n) = sum.x, scores(1, 0, n) = sum.y, scores(2, 0, n) = sum.z, scores(3, 0, n) = sum.w;
        }
    }

    // Ask for a tile of K or of V. Rows from `rows` on are zeros if Masked, and so are columns from `dim` on.
    template <bool Masked, int kDim, class From, class To>
    CUTLASS_DEVICE static void load_tile(From const& from, To&& to, int thread, int rows, int dim) {
        typename Base::GmemTiledCopyQKV copy;
        auto const own = copy.get_thread_slice(thread);
        Tensor source = own.partition_S(from);
        Tensor target = own.partition_D(to);
        Tensor at = own.partition_S(make_identity_tensor(Shape<Int<kBlockN>, Int<kDim>>{}));
        static_assert(kBlockN % (kThreads / Base::kGmemThreadsPerRow) == 0);
        CUTE_UNROLL
        for (int m = 0; m < size<1>(target); ++m) {
            CUTE_UNROLL
            for (int k = 0; k < size<2>(target); ++k) {
                bool const there = (!Masked || get<0>(at(_0{}, m, _0{})) < rows) && get<1>(at(_0{}, _0{}, k)) < dim;
                cute::copy(copy.with(there), source(_, m, k), target(_, m, k));
            }
        }
    }

    template <typename SharedStorage, typename FrgTensorO, typename Softmax>
    CUTLASS_DEVICE bool mma(Params const& params, FrgTensorO& out, Softmax& softmax, int const thread_idx,
                            SeqlenInfo_t const& seqlen_info,
                            cute::tuple<int32_t, int32_t, int32_t, int32_t> block_coord, SharedStorage& shared_storage,
                            float const* sinks) {
        int const thread = ::fa3::afresh<kThreads>(thread_idx);
        int const m_block = get<0>(block_coord), bidh = get<1>(block_coord), bidb = get<2>(block_coord);
        int const split_idx = get<3>(block_coord);
        auto const blocks = BlockMN_t::get_n_block_min_max(
            seqlen_info, m_block, bidb, split_idx, params.num_splits, params.window_size_left, params.window_size_right,
            params.attention_chunk_divmod, params.qhead_per_khead_divmod);
        int const n_block_min = get<0>(blocks);
        int n_block = get<1>(blocks) - 1;
        if (n_block < n_block_min) {
            return false;
        }

        auto& storage = shared_storage.tensors.mainloop;
        auto keys = [&](int stage) { return storage.smem_k.data() + stage * kBlockN * kHeadDim; };
        auto values = [&](int stage) { return storage.smem_v.data() + stage * kBlockN * kHeadDimV; };

        bool const packed_q = Varlen_ && params.cu_seqlens_q, packed_k = Varlen_ && params.cu_seqlens_k;
        int const bidb_kv = params.kv_batch_idx == nullptr ? bidb : params.kv_batch_idx[bidb];
        auto rows_of = [&](Element const* from, int dim, auto const& stride, auto const& packed) {
            auto const& shape = params.shape_Q_packed;
            return make_tensor(make_gmem_ptr(from + seqlen_info.offset_q * get<0>(stride)),
                               make_shape(get<0>(shape), dim, get<2>(shape), get<3>(shape)),
                               packed)(_, _, bidh, !packed_q ? bidb : 0);
        };
        auto tiles_of = [&](Element* from, auto const& stride, auto dim) {
            Tensor whole = make_tensor(make_gmem_ptr(from + seqlen_info.offset_k * get<0>(stride)), params.shape_K,
                                       stride)(_, _, bidh, !packed_k ? bidb_kv : 0);
            return local_tile(whole, make_shape(Int<kBlockN>{}, dim), make_coord(_, _0{}));
        };
        Tensor gK = tiles_of(params.ptr_K, params.stride_K, Int<kHeadDim>{});
        Tensor gV = tiles_of(params.ptr_V, params.stride_V, Int<kHeadDimV>{});
        auto load = [&](int block, int stage, auto masked) {
            static constexpr bool Masked = decltype(masked)::value;
            int const own = ::fa3::afresh<kThreads>(thread);
            Tensor sK = make_tensor(make_smem_ptr(keys(stage)), SmemLayout<kBlockN, kHeadDim>{});
            Tensor sV = make_tensor(make_smem_ptr(values(stage)), SmemLayout<kBlockN, kHeadDimV>{});
            if constexpr (PagedKV_) {
                PagedKVManager<kBlockN, kHeadDim, kHeadDimV, kThreads, Element, true /*KV_Same_Iter*/> pages(
                    params.ptr_pagetable, params.shape_pagetable, params.stride_pagetable, params.ptr_K, params.shape_K,
                    params.stride_K, params.ptr_V, params.headdim_v, params.stride_V, params.page_size_divmod,
                    params.page_size_divmod, bidb_kv, bidh, own, seqlen_info.seqlen_k, seqlen_info.leftpad_k, 0);
                pages.template load_page_table<Masked>(block);
                pages.template load_K<Masked>(block, sK);
                pages.template load_V<Masked>(block, sV);
            } else {
                int const rows = seqlen_info.seqlen_k - block * kBlockN;
                load_tile<Masked, kHeadDim>(gK(_, _, block), sK, own, rows, get<1>(params.shape_K));
                load_tile<Masked, kHeadDimV>(gV(_, _, block), sV, own, rows, params.headdim_v);
            }
        };

        // Q and Qv, whose places are of the scores' parts and of the second stage; then the first tile.
        bool const has_qv = params.ptr_Qv != nullptr;
        Element* const staged_q = reinterpret_cast<Element*>(storage.partial.data());
        __syncthreads();  // the output of the block's last tile has been read where V will be
        Tensor sQ = make_tensor(make_smem_ptr(staged_q), SmemLayout<kBlockM, kHeadDim>{});
        Tensor sQv = make_tensor(make_smem_ptr(values(1)), SmemLayout<kBlockM, kHeadDimV>{});
        Tensor mQ = rows_of(params.ptr_Q, get<1>(params.shape_Q_packed), params.stride_Q, params.stride_Q_packed);
        PackGQAManager<kBlockM, kHeadDim, kThreads, Element>::load_Q(mQ, sQ, params.qhead_per_khead_divmod, thread,
                                                                     seqlen_info.seqlen_q, m_block);
        if (has_qv) {
            Tensor mQv = rows_of(params.ptr_Qv, params.headdim_v, params.stride_Qv, params.stride_Qv_packed);
            PackGQAManager<kBlockM, kHeadDimV, kThreads, Element>::load_Q(mQv, sQv, params.qhead_per_khead_divmod,
                                                                          thread, seqlen_info.seqlen_q, m_block);
        }
        cute::cp_async_fence();
        load(n_block, 0, cute::true_type{});
        cute::cp_async_fence();

        uint32_t q[4], qv[kColumns / 16][4];
        cp_async_wait<1>();
        __syncthreads();
        {
            int const lane = thread % 32, warp = thread / 32, group = warp / kRowGroups;
            int const row = warp % kRowGroups * 16 + lane % 16;
            using Tile = ::fa3::Numbers<kBlockM>;
            Tile(cast_smem_ptr_to_uint(staged_q), row, lane / 16).read(q, 0, group * 16);
            Tile const second(cast_smem_ptr_to_uint(values(1) + group * kColumns * kBlockM), row, lane / 16);
            if (has_qv) {
                CUTE_UNROLL
                for (int d = 0; d < kColumns / 16; ++d) {
                    second.read(qv[d], 0, d * 16);
                }
            }
        }

        int stage = 0;
        clear(out);

        auto step = [&](auto mask_fn, auto first, auto check_inf) {
            static constexpr bool First = decltype(first)::value, Check_inf = decltype(check_inf)::value;
            using Tile = ::fa3::Numbers<kBlockN>;
            int const own = ::fa3::afresh<kThreads>(thread), lane = own % 32, warp = own / 32,
                      group = warp / kRowGroups;
            Tensor scores = partition_fragment_C(ScoresMma{}, ScoresShape{});
            clear(scores);
            // This tile has landed, and everybody is done with the one before it, whose place the next one takes.
            cp_async_wait<0>();
            __syncthreads();
            if (n_block > n_block_min) {
                load(n_block - 1, stage ^ 1, cute::false_type{});
                cute::cp_async_fence();
            }
            uint32_t const own_values = cast_smem_ptr_to_uint(values(stage) + group * kColumns * kBlockN);
            int const row = lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
            multiply_columns(scores, q, Tile(cast_smem_ptr_to_uint(keys(stage)), row, chunk), group * 16);
            if (has_qv) {
                Tile const v(own_values, row, chunk);
                CUTE_UNROLL
                for (int d = 0; d < kColumns / 16; ++d) {
                    multiply_columns(scores, qv[d], v, d * 16);
                }
            }
            add_parts(scores, storage.partial.data(), warp, lane);
            Mask<kBlockM, kBlockN, PackGQA_, ScoresMma> const mask(
                own % kScoresThreads, seqlen_info.seqlen_q, seqlen_info.seqlen_k, params.window_size_left,
                params.window_size_right, 0 /*sink_token_length*/, params.attention_chunk_divmod,
                params.qhead_per_khead_divmod);
            mask_fn(mask, scores);
            Tensor scale = softmax.template max_get_scale<First, Check_inf>(scores);
            softmax.template online_softmax<First, Check_inf>(scores);
            if constexpr (!First) {
                softmax.rescale_o(out, scale);
            }
            multiply_pv(out, scores, Tile(own_values, lane % 16, lane / 16));
            stage ^= 1;
            --n_block;
        };

        step([&](auto& mask, auto& s) { mask.template apply<true, Is_causal_, Is_local_>(s, m_block, n_block); },
             cute::true_type{}, cute::true_type{});
        if constexpr (Is_causal_ || Is_local_) {
            int const last = BlockMN_t::get_n_block_min_causal_local_mask(
                seqlen_info, m_block, n_block_min, params.window_size_right, params.attention_chunk_divmod,
                params.qhead_per_khead_divmod);
            CUTE_NO_UNROLL
            while (n_block >= last) {
                step([&](auto& mask,
                         auto& s) { mask.template apply<false, Is_causal_, Is_local_>(s, m_block, n_block); },
                     cute::false_type{}, cute::true_type{});
            }
        }
        int const whole =
            BlockMN_t::get_n_block_min_before_local_mask(seqlen_info, m_block, n_block_min, params.window_size_left,
                                                         params.attention_chunk_divmod, params.qhead_per_khead_divmod);
        CUTE_NO_UNROLL
        while (n_block >= whole) {
            step([](auto&, auto&) {}, cute::false_type{}, cute::false_type{});
        }
        if constexpr (Is_local_) {
            CUTE_NO_UNROLL
            while (n_block >= n_block_min) {
                step([&](auto& mask, auto& s) { mask.template apply<false, false, true>(s, m_block, n_block); },
                     cute::false_type{}, cute::true_type{});
            }
        }

        Tensor scale = softmax.finalize();
        if (sinks != nullptr && !::fa3::is_part<Split_, Varlen_>(split_idx, params.num_splits)) {
            ::fa3::include_sinks<PackGQA_, TileShape_MNK_PV>(sinks, softmax.row_sum, scale,
                                                             ScoresMma{}.get_slice(thread % kScoresThreads), m_block,
                                                             bidh, params.qhead_per_khead_divmod);
        }
        softmax.rescale_o(out, scale);
        return true;
    }
};

}  // namespace flash

namespace fa3 {

// The forward entry point: masks and lengths are switched here.
template <int Arch, typename T, bool Split, bool PagedKV>
void run_qv(Flash_fwd_params& params, cudaStream_t stream) {
    bool const lengths =
        params.cu_seqlens_q || params.cu_seqlens_k || params.seqused_q || params.seqused_k || params.leftpad_k;
    CAUSAL_LOCAL_SWITCH(params.is_causal, params.is_local, Is_causal, Is_local, [&] {
        VARLEN_SWITCH(lengths, Varlen, [&] {
            run_flash_fwd<Arch, 64, 512, 1, Qv<T>, T, Is_causal, Is_local, false, Varlen, PagedKV, false, false, true,
                          Split, false>(params, stream);
        });
    });
}

}  // namespace fa3
