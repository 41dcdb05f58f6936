// cvt, in its plain and its packing form. BSD-3-Clause, see LICENSE.
#include <algorithm>
#include <limits>

#include "interpreter.h"

namespace gb10 {

namespace {

bool is_float(Type type) {
    return type == Type::F32 || type == Type::F16 || type == Type::BF16;
}
bool is_signed(Type type) {
    return type == Type::S8 || type == Type::S16 || type == Type::S32 || type == Type::S64;
}

float rounded(float value, Round round) {
    switch (round) {
        case Round::Zero:
            return std::trunc(value);
        case Round::Up:
            return std::ceil(value);
        case Round::Down:
            return std::floor(value);
        default:
            return std::nearbyint(value);
    }
}

// The bits of an integer of that type, zero or sign extended.
uint64_t cut(uint64_t bits, Type type) {
    switch (size_of(type)) {
        case 1:
            return is_signed(type) ? static_cast<uint64_t>(int64_t{static_cast<int8_t>(bits)}) : bits & 0xff;
        case 2:
            return is_signed(type) ? static_cast<uint64_t>(int64_t{static_cast<int16_t>(bits)}) : bits & 0xffff;
        case 4:
            return is_signed(type) ? static_cast<uint64_t>(int64_t{static_cast<int32_t>(bits)}) : bits & ALL;
        default:
            return bits;
    }
}

// A float as an integer of that type; out of range it stays at the end, as the hardware does it.
uint64_t to_integer(float value, Type type) {
    int const bits = size_of(type) * 8;
    if (value != value) {
        return 0;
    }
    double const low = is_signed(type) ? -std::ldexp(1.0, bits - 1) : 0.0;
    double const high = std::ldexp(1.0, is_signed(type) ? bits - 1 : bits);
    if (value <= low) {
        return is_signed(type) ? static_cast<uint64_t>(-1) << (bits - 1) : 0;
    }
    if (value >= high) {
        return is_signed(type) ? (uint64_t{1} << (bits - 1)) - 1
               : bits == 64    ? ~uint64_t{0}
                               : (uint64_t{1} << bits) - 1;
    }
    return is_signed(type) ? static_cast<uint64_t>(static_cast<int64_t>(value)) : static_cast<uint64_t>(value);
}

}  // namespace

void Interpreter::convert(Step const& step, uint32_t mask) {
    auto const round = static_cast<Round>(step.sub);
    Type const from = step.from, type = step.type;
    if (type == Type::F16X2 && (from == Type::E4M3 || from == Type::E5M2)) {
        auto const* table = from == Type::E4M3 ? e4m3_table() : e5m2_table();
        auto* d = to<uint32_t>(step, 0);
        auto const* a = in<uint32_t>(step, 0);
        lanes(mask, [=](uint32_t i) {
            d[i] = static_cast<uint32_t>(to_half(table[a[i] >> 8 & 0xff])) << 16 | to_half(table[a[i] & 0xff]);
        });
        return;
    }
    if (type == Type::F16X2 || type == Type::BF16X2 || from == Type::F16X2 || from == Type::BF16X2 ||
        type == Type::E4M3 || type == Type::E5M2) {
        unknown("a conversion that the executor does not know");
    }
    // Registers are at least 32 bits wide; a narrower type reads the lower part.
    lanes(mask, [&](uint32_t i) {
        uint64_t const bits = value(step, 0, i);
        uint64_t made;
        if (is_float(from)) {
            float number = from == Type::F32   ? as_float(static_cast<uint32_t>(bits))
                           : from == Type::F16 ? from_half(static_cast<uint16_t>(bits))
                                               : as_float(static_cast<uint32_t>(bits) << 16);
            if (type == Type::F32) {
                bool const whole = from == Type::F32;  // cvt.rpi.f32.f32 and the like round to whole numbers
                made = as_bits(whole ? rounded(number, round) : number);
            } else if (type == Type::F16) {
                made = to_half(number);
            } else if (type == Type::BF16) {
                made = to_bfloat(number);
            } else {
                made = to_integer(rounded(number, round), type);
            }
        } else {
            uint64_t const whole = cut(bits, from);
            float const number =
                is_signed(from) ? static_cast<float>(static_cast<int64_t>(whole)) : static_cast<float>(whole);
            made = type == Type::F32    ? as_bits(number)
                   : type == Type::F16  ? to_half(number)
                   : type == Type::BF16 ? to_bfloat(number)
                                        : cut(whole, type);
        }
        if (step.to_64 != 0) {
            to<uint64_t>(step, 0)[i] = made;
        } else {
            to<uint32_t>(step, 0)[i] = static_cast<uint32_t>(size_of(type) == 2 ? made & 0xffff : made);
        }
    });
}

void Interpreter::convert_pack(Step const& step, uint32_t mask) {
    auto* d = to<uint32_t>(step, 0);
    auto const *high = in<float>(step, 0), *low = in<float>(step, 1);
    switch (step.type) {
        case Type::BF16X2:
            lanes(mask, [=](uint32_t i) { d[i] = uint32_t{to_bfloat(high[i])} << 16 | to_bfloat(low[i]); });
            return;
        case Type::F16X2:
            lanes(mask, [=](uint32_t i) { d[i] = uint32_t{to_half(high[i])} << 16 | to_half(low[i]); });
            return;
        case Type::E4M3:
        case Type::E5M2:
            lanes(mask, [=, type = step.type](uint32_t i) {
                d[i] = static_cast<uint32_t>(to_eight(high[i], type)) << 8 | to_eight(low[i], type);
            });
            return;
        default:
            unknown("a conversion that the executor does not know");
    }
}

}  // namespace gb10
