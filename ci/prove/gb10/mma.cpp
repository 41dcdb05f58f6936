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

template <int K, class Unpack>
void multiply(uint32_t* const* to, uint32_t const* const* in, Unpack unpack) {
    constexpr int PER_WORD = K / 8, HALF = K / 2;
    alignas(64) float a[16][K], transposed[8][K], b[K][8], c[16][8];
    rows(in[0], &a[0][0], K, unpack, PER_WORD);
    rows(in[1], &a[8][0], K, unpack, PER_WORD);
    rows(in[2], &a[0][HALF], K, unpack, PER_WORD);
    rows(in[3], &a[8][HALF], K, unpack, PER_WORD);
    rows(in[4], &transposed[0][0], K, unpack, PER_WORD);
    rows(in[5], &transposed[0][HALF], K, unpack, PER_WORD);
    for (int k = 0; k < K; ++k) {
        for (int n = 0; n < 8; ++n) {
            b[k][n] = transposed[n][k];
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        int const row = lane / 4, column = lane % 4 * 2;
        c[row][column] = as_float(in[6][lane]);
        c[row][column + 1] = as_float(in[7][lane]);
        c[row + 8][column] = as_float(in[8][lane]);
        c[row + 8][column + 1] = as_float(in[9][lane]);
    }
    for (int row = 0; row < 16; ++row) {
        float sum[8];
        for (int n = 0; n < 8; ++n) {
            sum[n] = c[row][n];
        }
        for (int k = 0; k < K; ++k) {
            float const factor = a[row][k];
            for (int n = 0; n < 8; ++n) {
                sum[n] += factor * b[k][n];
            }
        }
        for (int n = 0; n < 8; ++n) {
            c[row][n] = sum[n];
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        int const row = lane / 4, column = lane % 4 * 2;
        to[0][lane] = as_bits(c[row][column]);
        to[1][lane] = as_bits(c[row][column + 1]);
        to[2][lane] = as_bits(c[row + 8][column]);
        to[3][lane] = as_bits(c[row + 8][column + 1]);
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
