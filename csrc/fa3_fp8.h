// Q, K and V in e4m3 on the tensor cores of 8.9 and later: mma.sync.m16n8k32 with sums in fp32. BSD-3-Clause, see
// LICENSE.
//
// The keys of the second product are counted in another order than in memory, so that P moves no value between threads:
// a thread's scores of two neighbouring 8-column tiles are keys 8j + 2t, + 1 and 8j + 8 + 2t, + 1, and these four are
// the numbers that an MMA wants of it side by side. ldmatrix.trans gives keys 2t, 2t + 1 of columns 2g, 2g + 1 in one
// register; two prmt make of two such registers the four keys of column 2g, and those of 2g + 1. So a thread's columns
// of the output are four neighbours of 16.
#pragma once

#include <cstddef>

#include "fa3_fp8_tile.h"

namespace fa3 {

// What tile_size.h asks for a tile of 16-bit kernels, of which none are in a file with this header.
constexpr Tile forward_tile(int head_dim, int, Variant const& variant) {
    return fp8_tile(head_dim, variant);
}

}  // namespace fa3

// The launch template asks for a tile by an element's size as sizeof gives it, a size_t, and upstream's function of
// this name takes an int: where this one is declared first, it is the one that is asked.
constexpr std::tuple<int, int, int, int, bool> tile_size_fwd_sm8x(bool, int head_dim, int, bool causal, bool local,
                                                                  std::size_t, bool paged, bool varlen_split,
                                                                  bool softcap, bool, bool) {
    return fa3::fp8_tile_size(head_dim, {causal, local, paged, varlen_split, softcap, false, false});
}

#include "flash_fwd_launch_template.h"

namespace fa3 {

// In the place of a kernel's element type. It is not e4m3's own, for which upstream's epilogue moves columns of the
// output between threads, as the WGMMA kernels need it.
struct Fp8 : cutlass::float_e4m3_t {};

// Four numbers as e4m3, the first in the lowest byte.
CUTLASS_DEVICE uint32_t to_e4m3(float a, float b, float c, float d) {
    uint16_t low = 0, high = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    __trap();  // no such instruction there, nor the MMA; the host code refuses such a device
#else
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
#endif
    return static_cast<uint32_t>(high) << 16 | low;
}

// Sums of 16 rows and 8 columns, plus 16 x 32 by 32 x 8 numbers.
CUTLASS_DEVICE void multiply(float& c0, float& c1, float& c2, float& c3, uint32_t const (&a)[4], uint32_t b0,
                             uint32_t b1) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// A tile of bytes in shared memory. Rows of kLine bytes lie one after another, and further columns behind them; 16-byte
// chunks of a line change places with the row, so that any 8 rows of a column of chunks lie in different banks.
template <int kRows, int kDim>
struct Bytes {
    static constexpr int kLine = kDim % 128 == 0 ? 128 : kDim % 64 == 0 ? 64 : 32;
    static constexpr int kBits = kLine == 128 ? 3 : kLine == 64 ? 2 : 1;
    using Atom = decltype(cute::composition(
        cute::Swizzle<kBits, 4, 3>{},
        cute::Layout<cute::Shape<cute::_8, cute::Int<kLine>>, cute::Stride<cute::Int<kLine>, cute::_1>>{}));
    using Layout = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kRows>, cute::Int<kDim>>{}));

    uint32_t base;  // address in shared memory
    uint32_t lane;  // where this thread's row and chunk lie, of the tile's first rows and columns

    // `row` and `chunk` (0 or 1): which this thread reads of what an instruction reads.
    CUTLASS_DEVICE Bytes(uint32_t base_, int row, int chunk)
        : base(base_), lane(row * kLine + ((chunk ^ (row >> (3 - kBits)) % (1 << kBits)) << 4)) {}

    // Four 8 x 16 byte matrices. Their first row is a multiple of 8, their first byte one of 16, or of 32 where two
    // chunks are read.
    template <bool kTransposed = false>
    CUTLASS_DEVICE void read(uint32_t (&to)[4], int row, int byte) const {
        uint32_t const at = base + (lane ^ byte % kLine) + (byte / kLine * kRows + row) * kLine;
        if constexpr (kTransposed) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                         : "r"(at));
        } else {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                         : "r"(at));
        }
    }
};

}  // namespace fa3

namespace flash {

// The main loop. Its arguments, its shared memory and how memory is copied are those of upstream's for e4m3, which has
// no such MMA.
template <int kNWarps, int Stages, bool Q_in_regs, class TileShape_MNK_, int kHeadDimV, class ElementAccum_,
          class ArchTag_, bool Is_causal_, bool Is_local_, bool Has_softcap_, bool Varlen_, bool PagedKV_,
          bool AppendKV_, bool PackGQA_, bool Split_>
struct CollectiveMainloopFwdSm80<kNWarps, Stages, Q_in_regs, TileShape_MNK_, kHeadDimV, ::fa3::Fp8, ElementAccum_,
                                 ArchTag_, Is_causal_, Is_local_, Has_softcap_, Varlen_, PagedKV_, AppendKV_, PackGQA_,
                                 Split_>
    : CollectiveMainloopFwdSm80<kNWarps, Stages, Q_in_regs, TileShape_MNK_, kHeadDimV, cutlass::float_e4m3_t,
                                ElementAccum_, ArchTag_, Is_causal_, Is_local_, Has_softcap_, Varlen_, PagedKV_,
                                AppendKV_, PackGQA_, Split_> {
    using Base = CollectiveMainloopFwdSm80<kNWarps, Stages, Q_in_regs, TileShape_MNK_, kHeadDimV, cutlass::float_e4m3_t,
                                           ElementAccum_, ArchTag_, Is_causal_, Is_local_, Has_softcap_, Varlen_,
                                           PagedKV_, AppendKV_, PackGQA_, Split_>;
    using typename Base::BlockMN_t, typename Base::Element, typename Base::Params, typename Base::SeqlenInfo_t;
    using typename Base::TileShape_MNK, typename Base::TileShape_MNK_PV;
    static constexpr int kBlockM = Base::kBlockM, kBlockN = Base::kBlockN, kHeadDim = Base::kHeadDim;
    static constexpr int kThreads = Base::NumMmaThreads;
    static_assert(Stages == 2 && !Q_in_regs && !AppendKV_ && kHeadDimV == kHeadDim && kBlockN % 32 == 0);

    // Which thread has which scores: as of any MMA with 8 columns. Of the output a thread has four neighbours of 16.
    using ScoresMma = typename Base::TiledMma;
    using TiledMma = TiledMMA<typename Base::MMA_Atom_Arch, Layout<Shape<Int<kNWarps>, _1, _1>>,
                              Tile<Int<16 * kNWarps>, Layout<Shape<_2, _4, _2>, Stride<_1, _4, _2>>, _16>>;

    using TileQ = ::fa3::Bytes<kBlockM, kHeadDim>;
    using TileKV = ::fa3::Bytes<kBlockN, kHeadDim>;

    // Scores of this warp's rows: S += Q K^T.
    template <class Scores>
    CUTLASS_DEVICE static void multiply_qk(Scores& scores, TileQ const& q, TileKV const& k) {
        static constexpr int kM = decltype(size<1>(scores))::value;
        CUTE_UNROLL
        for (int d = 0; d < kHeadDim; d += 32) {
            uint32_t a[kM][4];
            CUTE_UNROLL
            for (int m = 0; m < kM; ++m) {
                q.read(a[m], m * 16 * kNWarps, d);
            }
            CUTE_UNROLL
            for (int n = 0; n < kBlockN / 8; n += 2) {
                uint32_t b[4];
                k.read(b, n * 8, d);
                CUTE_UNROLL
                for (int m = 0; m < kM; ++m) {
                    CUTE_UNROLL
                    for (int i = 0; i < 2; ++i) {
                        ::fa3::multiply(scores(0, m, n + i), scores(1, m, n + i), scores(2, m, n + i),
                                        scores(3, m, n + i), a[m], b[2 * i], b[2 * i + 1]);
                    }
                }
            }
        }
    }

    // Output of this warp's rows: O += P V.
    template <class Out, class Scores>
    CUTLASS_DEVICE static void multiply_pv(Out& out, Scores const& p, TileKV const& v) {
        static constexpr int kM = decltype(size<1>(p))::value;
        CUTE_UNROLL
        for (int n = 0; n < kBlockN / 8; n += 4) {
            uint32_t a[kM][4];
            CUTE_UNROLL
            for (int m = 0; m < kM; ++m) {
                CUTE_UNROLL
                for (int i = 0; i < 4; ++i) {
                    int const row = i % 2 * 2, at = n + i / 2 * 2;
                    a[m][i] =
                        ::fa3::to_e4m3(p(row, m, at), p(row + 1, m, at), p(row, m, at + 1), p(row + 1, m, at + 1));
                }
            }
            CUTE_UNROLL
            for (int d = 0; d < kHeadDim / 8; d += 2) {
                uint32_t b[4];
                v.template read<true>(b, n * 8, d * 8);
                CUTE_UNROLL
                for (int i = 0; i < 2; ++i) {
                    uint32_t const bytes = i == 0 ? 0x6420 : 0x7531;
                    uint32_t const b0 = __byte_perm(b[0], b[1], bytes), b1 = __byte_perm(b[2], b[3], bytes);
                    CUTE_UNROLL
                    for (int m = 0; m < kM; ++m) {
                        ::fa3::multiply(out(i, m, d), out(i, m, d + 1), out(2 + i, m, d), out(2 + i, m, d + 1), a[m],
                                        b0, b1);
                    }
                }
            }
        }
    }

    // Ask for a tile of K or of V. Rows from `rows` on are zeros if Masked, and so are columns from `dim` on.
    template <bool Masked, class From, class To>
    CUTLASS_DEVICE static void load_tile(From const& from, To&& to, int thread, int rows, int dim) {
        typename Base::GmemTiledCopyQKV copy;
        auto const own = copy.get_thread_slice(thread);
        Tensor source = own.partition_S(from);
        Tensor target = own.partition_D(to);
        Tensor at = own.partition_S(make_identity_tensor(select<1, 2>(TileShape_MNK{})));
        static constexpr bool kEven = kBlockN % (kThreads / Base::kGmemThreadsPerRow) == 0;
        CUTE_UNROLL
        for (int m = 0; m < size<1>(target); ++m) {
            int const row = get<0>(at(_0{}, m, _0{}));
            if (kEven || row < kBlockN) {
                CUTE_UNROLL
                for (int k = 0; k < size<2>(target); ++k) {
                    bool const there = (!Masked || row < rows) && get<1>(at(_0{}, _0{}, k)) < dim;
                    cute::copy(copy.with(there), source(_, m, k), target(_, m, k));
                }
            }
        }
    }

    CUTLASS_DEVICE static float scale_of(float const* scales, typename Base::StrideDescale const& stride, int bidb,
                                         int bidh_kv) {
        return scales == nullptr ? 1.f : scales[bidb * get<0>(stride) + bidh_kv * get<1>(stride)];
    }

    template <typename SharedStorage, typename FrgTensorO, typename Softmax>
    CUTLASS_DEVICE bool mma(Params const& params, FrgTensorO& out, Softmax& softmax, int const thread,
                            SeqlenInfo_t const& seqlen_info,
                            cute::tuple<int32_t, int32_t, int32_t, int32_t> block_coord, SharedStorage& shared_storage,
                            float const* sinks) {
        int const m_block = get<0>(block_coord), bidh = get<1>(block_coord), bidb = get<2>(block_coord);
        int const split_idx = get<3>(block_coord);
        int const bidh_kv = !PackGQA_ ? params.qhead_per_khead_divmod.divide(bidh) : bidh;
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
        auto values = [&](int stage) { return storage.smem_v.data() + stage * kBlockN * kHeadDim; };

        bool const packed_q = Varlen_ && params.cu_seqlens_q, packed_k = Varlen_ && params.cu_seqlens_k;
        int const bidb_kv = params.kv_batch_idx == nullptr ? bidb : params.kv_batch_idx[bidb];
        Tensor mQ = make_tensor(make_gmem_ptr(params.ptr_Q + seqlen_info.offset_q * get<0>(params.stride_Q)),
                                params.shape_Q_packed, params.stride_Q_packed)(_, _, bidh, !packed_q ? bidb : 0);
        auto tiles_of = [&](Element* from, auto const& stride) {
            Tensor whole = make_tensor(make_gmem_ptr(from + seqlen_info.offset_k * get<0>(stride)), params.shape_K,
                                       stride)(_, _, bidh_kv, !packed_k ? bidb_kv : 0);
            return local_tile(whole, select<1, 2>(TileShape_MNK{}), make_coord(_, _0{}));
        };
        Tensor gK = tiles_of(params.ptr_K, params.stride_K);
        Tensor gV = tiles_of(params.ptr_V, params.stride_V);

        static_assert(PackGQA_, "below Hopper the host code always packs");
        Tensor sQ = make_tensor(make_smem_ptr(storage.smem_q.data()), typename TileQ::Layout{});
        PackGQAManager<kBlockM, kHeadDim, kThreads, Element>::load_Q(mQ, sQ, params.qhead_per_khead_divmod, thread,
                                                                     seqlen_info.seqlen_q, m_block);
        PagedKVManager<kBlockN, kHeadDim, kHeadDimV, kThreads, Element, true /*KV_Same_Iter*/> pages(
            params.ptr_pagetable, params.shape_pagetable, params.stride_pagetable, params.ptr_K, params.shape_K,
            params.stride_K, params.ptr_V, params.headdim_v, params.stride_V, params.page_size_divmod,
            params.page_size_divmod, bidb_kv, bidh_kv, thread, seqlen_info.seqlen_k, seqlen_info.leftpad_k, 0);

        auto load = [&](int block, int stage, auto masked) {
            static constexpr bool Masked = decltype(masked)::value;
            Tensor sK = make_tensor(make_smem_ptr(keys(stage)), typename TileKV::Layout{});
            Tensor sV = make_tensor(make_smem_ptr(values(stage)), typename TileKV::Layout{});
            if constexpr (PagedKV_) {
                pages.template load_page_table<Masked>(block);
                pages.template load_K<Masked>(block, sK);
                pages.template load_V<Masked>(block, sV);
            } else {
                int const rows = seqlen_info.seqlen_k - block * kBlockN;
                load_tile<Masked>(gK(_, _, block), sK, thread, rows, get<1>(params.shape_K));
                load_tile<Masked>(gV(_, _, block), sV, thread, rows, get<1>(params.shape_K));
            }
        };

        __syncthreads();  // the output of the block's last tile has been read where K and V will be
        // Where a block of keys lies: kept from one to the next, but computed for each at head dim 256. The other way
        // makes some kernels spill.
        int stage = kHeadDim == 256 ? n_block & 1 : 0;
        load(n_block, stage, cute::true_type{});
        cute::cp_async_fence();

        Mask<kBlockM, kBlockN, PackGQA_, ScoresMma> mask(
            thread, seqlen_info.seqlen_q, seqlen_info.seqlen_k, params.window_size_left, params.window_size_right,
            0 /*sink_token_length*/, params.attention_chunk_divmod, params.qhead_per_khead_divmod);
        float softcap = params.softcap_val;
        if constexpr (Has_softcap_) {
            softcap *= scale_of(params.ptr_q_descale, params.stride_q_descale, bidb, bidh_kv) *
                       scale_of(params.ptr_k_descale, params.stride_k_descale, bidb, bidh_kv);
        }

        int const lane = thread % 32, warp = thread / 32;
        TileQ const q(cast_smem_ptr_to_uint(storage.smem_q.data()), warp * 16 + lane % 16, lane / 16);
        clear(out);

        auto step = [&](auto mask_fn, auto first, auto check_inf) {
            static constexpr bool First = decltype(first)::value, Check_inf = decltype(check_inf)::value;
            Tensor scores = partition_fragment_C(ScoresMma{}, select<0, 1>(TileShape_MNK{}));
            clear(scores);
            if constexpr (kHeadDim == 256) {
                stage = n_block & 1;
            }
            // This tile has landed, and everybody is done with the one before it, whose place the next one takes.
            cp_async_wait<0>();
            __syncthreads();
            if (n_block > n_block_min) {
                load(n_block - 1, stage ^ 1, cute::false_type{});
                cute::cp_async_fence();
            }
            multiply_qk(scores, q, TileKV(cast_smem_ptr_to_uint(keys(stage)), lane % 8 + lane / 16 * 8, lane / 8 % 2));
            if constexpr (Has_softcap_) {
                flash::apply_softcap(scores, softcap);
            }
            mask_fn(scores, n_block);
            Tensor scale = softmax.template max_get_scale<First, Check_inf>(scores);
            softmax.template online_softmax<First, Check_inf>(scores);
            if constexpr (!First) {
                softmax.rescale_o(out, scale);
            }
            multiply_pv(out, scores, TileKV(cast_smem_ptr_to_uint(values(stage)), lane, 0));
            if constexpr (kHeadDim != 256) {
                stage ^= 1;
            }
            --n_block;
        };

        step([&](auto& s, int block) { mask.template apply<true, Is_causal_, Is_local_>(s, m_block, block); },
             cute::true_type{}, cute::true_type{});
        if constexpr (Is_causal_ || Is_local_) {
            int const last = BlockMN_t::get_n_block_min_causal_local_mask(
                seqlen_info, m_block, n_block_min, params.window_size_right, params.attention_chunk_divmod,
                params.qhead_per_khead_divmod);
            CUTE_NO_UNROLL
            while (n_block >= last) {
                step([&](auto& s, int block) { mask.template apply<false, Is_causal_, Is_local_>(s, m_block, block); },
                     cute::false_type{}, cute::true_type{});
            }
        }
        int const whole =
            BlockMN_t::get_n_block_min_before_local_mask(seqlen_info, m_block, n_block_min, params.window_size_left,
                                                         params.attention_chunk_divmod, params.qhead_per_khead_divmod);
        CUTE_NO_UNROLL
        while (n_block >= whole) {
            step([](auto&, int) {}, cute::false_type{}, cute::false_type{});
        }
        if constexpr (Is_local_) {
            CUTE_NO_UNROLL
            while (n_block >= n_block_min) {
                step([&](auto& s, int block) { mask.template apply<false, false, true>(s, m_block, block); },
                     cute::false_type{}, cute::true_type{});
            }
        }

        Tensor scale = softmax.finalize(scale_of(params.ptr_v_descale, params.stride_v_descale, bidb, bidh_kv));
        if (sinks != nullptr && !::fa3::is_part<Split_, Varlen_>(split_idx, params.num_splits)) {
            ::fa3::include_sinks<PackGQA_, TileShape_MNK_PV>(sinks, softmax.row_sum, scale,
                                                             ScoresMma{}.get_slice(thread), m_block, bidh,
                                                             params.qhead_per_khead_divmod);
        }
        softmax.rescale_o(out, scale);
        return true;
    }
};

}  // namespace flash

namespace fa3 {

// The forward entry point of a head dim: masks and lengths are switched here.
template <int Arch, int kHeadDim, bool Split, bool PagedKV, bool Has_softcap>
void run_fp8(Flash_fwd_params& params, cudaStream_t stream) {
    bool const lengths =
        params.cu_seqlens_q || params.cu_seqlens_k || params.seqused_q || params.seqused_k || params.leftpad_k;
    CAUSAL_LOCAL_SWITCH(params.is_causal, params.is_local, Is_causal, Is_local, [&] {
        VARLEN_SWITCH(lengths, Varlen, [&] {
            run_flash_fwd<Arch, kHeadDim, kHeadDim, 1, Fp8, cutlass::bfloat16_t, Is_causal, Is_local, Has_softcap,
                          Varlen, PagedKV, false, false, true, Split, false>(params, stream);
        });
    });
}

}  // namespace fa3
