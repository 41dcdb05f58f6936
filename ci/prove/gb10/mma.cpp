// mma.sync and ldmatrix: a fragment's lanes are rows of four words, so a register is an 8 x 8 matrix of 16-bit values
// (8 x 16 of 8-bit ones) in order. BSD-3-Clause, see LICENSE.
#include "numbers.h"

namespace gb10 {

namespace {

template <class Unpack>
void rows(uint32_t const* reg, float* into, int stride, Unpack unpack, int per_word) {
    for (int row = 0; row < 8; ++row) {
        for (int word = 0; word < 4; ++word) {
            unpack(reg[row * 4 + word], into + row * stride + word * per_word);
        }
    }
}

using Eight = float __attribute__((vector_size(32)));

// A register's two columns of C lie four lanes apart once even columns come first, so B's columns are taken that way
// too.
constexpr int COLUMN[8] = {0, 2, 4, 6, 1, 3, 5, 7};

template <int K, class Unpack>
void multiply(uint32_t* const* to, uint32_t const* const* in, Unpack unpack) {
    constexpr int PER_WORD = K / 8, HALF = K / 2;
    alignas(64) float a[16][K], transposed[8][K], b[K][8];
    rows(in[0], &a[0][0], K, unpack, PER_WORD);
    rows(in[1], &a[8][0], K, unpack, PER_WORD);
    rows(in[2], &a[0][HALF], K, unpack, PER_WORD);
    rows(in[3], &a[8][HALF], K, unpack, PER_WORD);
    rows(in[4], &transposed[0][0], K, unpack, PER_WORD);
    rows(in[5], &transposed[0][HALF], K, unpack, PER_WORD);
    for (int n = 0; n < 8; ++n) {
        for (int k = 0; k < K; ++k) {
            b[k][n] = transposed[COLUMN[n]][k];
        }
    }
    Eight factor[K];
    std::memcpy(factor, b, sizeof b);
    for (int row = 0; row < 16; row += 4) {
        Eight sum[4];
        uint32_t const upper = row >= 8 ? 2 : 0;
        size_t const at = static_cast<size_t>(row % 8) * 4;
        for (size_t r = 0; r < 4; ++r) {
            std::memcpy(&sum[r], in[6 + upper] + at + r * 4, 16);
            std::memcpy(reinterpret_cast<char*>(&sum[r]) + 16, in[7 + upper] + at + r * 4, 16);
        }
        for (int k = 0; k < K; ++k) {
            for (int r = 0; r < 4; ++r) {
                sum[r] += a[row + r][k] * factor[k];
            }
        }
        for (size_t r = 0; r < 4; ++r) {
            std::memcpy(to[upper] + at + r * 4, &sum[r], 16);
            std::memcpy(to[1 + upper] + at + r * 4, reinterpret_cast<char const*>(&sum[r]) + 16, 16);
        }
    }
}

}  // namespace

void mma(Type type, uint32_t* const* to, uint32_t const* const* in) {
    switch (type) {
        case Type::BF16:
            multiply<16>(to, in, [](uint32_t word, float* into) {
                into[0] = as_float(word << 16);
                into[1] = as_float(word & 0xffff0000u);
            });
            return;
        case Type::F16:
            multiply<16>(to, in, [](uint32_t word, float* into) {
                into[0] = from_half(static_cast<uint16_t>(word));
                into[1] = from_half(static_cast<uint16_t>(word >> 16));
            });
            return;
        default: {
            auto const* table = type == Type::E4M3 ? e4m3_table() : e5m2_table();
            multiply<32>(to, in, [table](uint32_t word, float* into) {
                for (int i = 0; i < 4; ++i) {
                    into[i] = table[word >> (8 * i) & 0xff];
                }
            });
        }
    }
}

void matrix(bool transposed, uint16_t const* const* row, uint32_t* to) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
        uint32_t const r = lane / 4, c = lane % 4 * 2;
        uint32_t const low = transposed ? row[c][r] : row[r][c];
        uint32_t const high = transposed ? row[c + 1][r] : row[r][c + 1];
        to[lane] = high << 16 | low;
    }
}

}  // namespace gb10
