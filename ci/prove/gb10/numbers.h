// Number formats, and functions that the hardware approximates. BSD-3-Clause, see LICENSE.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "program.h"

namespace gb10 {

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float from_half(uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
}
inline uint16_t to_half(float value) {
    _Float16 const half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
inline uint16_t to_bfloat(float value) {
    uint32_t const bits = as_bits(value);
    bool const nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return nan ? 0x7fff : static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

float const* e4m3_table();
float const* e5m2_table();
uint8_t to_eight(float value, Type type);  // to the nearest e4m3 or e5m2, finite values saturate

// 2 to the x to about an ulp, without a call, so that 32 lanes are computed at once.
inline float exp2_of(float x) {
    float const clamped = x < -150.0f ? -150.0f : x > 129.0f ? 129.0f : x;
    float const whole = std::nearbyint(clamped), f = clamped - whole;
    float p = 1.5353362e-4f;
    p = p * f + 1.3398874e-3f;
    p = p * f + 9.6184373e-3f;
    p = p * f + 5.5503324e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    int const half = static_cast<int>(whole) / 2, rest = static_cast<int>(whole) - half;
    float const scaled =
        p * as_float(static_cast<uint32_t>(half + 127) << 23) * as_float(static_cast<uint32_t>(rest + 127) << 23);
    return x != x ? x : scaled;
}

// mma.cpp. `to` and `in` point to 32 lanes each.
void mma(Type type, uint32_t* const* to, uint32_t const* const* in);
// One 8 x 8 matrix of 16-bit values from its eight rows.
void matrix(bool transposed, uint16_t const* const* row, uint32_t* to);

}  // namespace gb10
