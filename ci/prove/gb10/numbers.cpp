// The two 8-bit floating-point formats. BSD-3-Clause, see LICENSE.
#include "numbers.h"

#include <array>

namespace gb10 {

namespace {

std::array<float, 256> table(int exponent_bits, int bias, bool has_infinity) {
    std::array<float, 256> made{};
    int const mantissa_bits = 7 - exponent_bits, top = (1 << exponent_bits) - 1;
    for (int code = 0; code < 256; ++code) {
        int const exponent = code >> mantissa_bits & top, mantissa = code & ((1 << mantissa_bits) - 1);
        float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits)
                                    : std::ldexp(static_cast<float>(mantissa + (1 << mantissa_bits)),
                                                 exponent - bias - mantissa_bits);
        if (has_infinity && exponent == top) {
            value = mantissa == 0 ? INFINITY : NAN;
        } else if (!has_infinity && (code & 0x7f) == 0x7f) {
            value = NAN;
        }
        made[static_cast<size_t>(code)] = code & 0x80 ? -value : value;
    }
    return made;
}

}  // namespace

float const* e4m3_table() {
    static auto const made = table(4, 7, false);
    return made.data();
}
float const* e5m2_table() {
    static auto const made = table(5, 15, true);
    return made.data();
}

uint8_t to_eight(float value, Type type) {
    auto const* values = type == Type::E4M3 ? e4m3_table() : e5m2_table();
    uint8_t const sign = std::signbit(value) ? 0x80 : 0, largest = type == Type::E4M3 ? 0x7e : 0x7b;
    if (std::isnan(value)) {
        return 0x7f;
    }
    float const size = std::fabs(value);
    if (size >= values[largest]) {
        return sign | largest;
    }
    uint8_t low = 0;
    while (values[low + 1] <= size) {  // codes of one sign rise with their values
        ++low;
    }
    float const below = size - values[low], above = values[low + 1] - size;
    bool const up = above < below || (above == below && (low & 1));
    return sign | static_cast<uint8_t>(low + up);
}

}  // namespace gb10
