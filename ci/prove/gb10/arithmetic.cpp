// Integer and floating-point instructions, 32 lanes at a time. BSD-3-Clause, see LICENSE.
#include <algorithm>
#include <type_traits>

#include "interpreter.h"

namespace gb10 {

bool Interpreter::floating(Step const& step, uint32_t mask) {
    switch (step.op) {
        case Op::Add:
            two<float>(step, mask, [](float a, float b) { return a + b; });
            return true;
        case Op::Sub:
            two<float>(step, mask, [](float a, float b) { return a - b; });
            return true;
        case Op::Mul:
            two<float>(step, mask, [](float a, float b) { return a * b; });
            return true;
        case Op::Div:
            two<float>(step, mask, [](float a, float b) { return a / b; });
            return true;
        // A NaN loses against a number.
        case Op::Max:
            two<float>(step, mask, [](float a, float b) { return a > b || b != b ? a : b; });
            return true;
        case Op::Min:
            two<float>(step, mask, [](float a, float b) { return a < b || b != b ? a : b; });
            return true;
        case Op::Fma:
            three<float>(step, mask, [](float a, float b, float c) { return __builtin_fmaf(a, b, c); });
            return true;
        case Op::Neg:
            one<uint32_t>(step, mask, [](uint32_t a) { return a ^ 0x80000000u; });
            return true;
        case Op::Abs:
            one<uint32_t>(step, mask, [](uint32_t a) { return a & 0x7fffffffu; });
            return true;
        case Op::Rcp:
            one<float>(step, mask, [](float a) { return 1.0f / a; });
            return true;
        case Op::Sqrt:
            one<float>(step, mask, [](float a) { return std::sqrt(a); });
            return true;
        case Op::Rsqrt:
            one<float>(step, mask, [](float a) { return 1.0f / std::sqrt(a); });
            return true;
        case Op::Ex2:
            one<float>(step, mask, [](float a) { return exp2_of(a); });
            return true;
        case Op::Lg2:
            one<float>(step, mask, [](float a) { return std::log2(a); });
            return true;
        case Op::Tanh:
            one<float>(step, mask, [](float a) { return std::tanh(a); });
            return true;
        case Op::Sin:
            one<float>(step, mask, [](float a) { return std::sin(a); });
            return true;
        case Op::Cos:
            one<float>(step, mask, [](float a) { return std::cos(a); });
            return true;
        default:
            return false;
    }
}

template <class S, class U>
bool Interpreter::integer(Step const& step, uint32_t mask) {
    constexpr uint32_t BITS = sizeof(U) * 8;
    using Wide = std::conditional_t<sizeof(U) == 4, uint64_t, unsigned __int128>;
    using WideSigned = std::conditional_t<sizeof(U) == 4, int64_t, __int128>;
    bool const is_signed = step.type == Type::S32 || step.type == Type::S64;
    auto* d = to<U>(step, 0);
    auto const* a = in<U>(step, 0);
    switch (step.op) {
        case Op::Add:
            two<U>(step, mask, [](U x, U y) { return static_cast<U>(x + y); });
            return true;
        case Op::Sub:
            two<U>(step, mask, [](U x, U y) { return static_cast<U>(x - y); });
            return true;
        case Op::Mul:
            two<U>(step, mask, [](U x, U y) { return static_cast<U>(x * y); });
            return true;
        case Op::Mad:
            three<U>(step, mask, [](U x, U y, U z) { return static_cast<U>(x * y + z); });
            return true;
        case Op::And:
            two<U>(step, mask, [](U x, U y) { return x & y; });
            return true;
        case Op::Or:
            two<U>(step, mask, [](U x, U y) { return x | y; });
            return true;
        case Op::Xor:
            two<U>(step, mask, [](U x, U y) { return x ^ y; });
            return true;
        case Op::Not:
            one<U>(step, mask, [](U x) { return ~x; });
            return true;
        case Op::Neg:
            one<U>(step, mask, [](U x) { return static_cast<U>(0 - x); });
            return true;
        case Op::Abs:
            one<S>(step, mask, [](S x) { return x < 0 ? static_cast<S>(0 - static_cast<U>(x)) : x; });
            return true;
        case Op::Min:
            is_signed ? two<S>(step, mask, [](S x, S y) { return x < y ? x : y; })
                      : two<U>(step, mask, [](U x, U y) { return x < y ? x : y; });
            return true;
        case Op::Max:
            is_signed ? two<S>(step, mask, [](S x, S y) { return x > y ? x : y; })
                      : two<U>(step, mask, [](U x, U y) { return x > y ? x : y; });
            return true;
        case Op::MulHi:
            is_signed
                ? two<S>(step, mask, [](S x, S y) { return static_cast<S>(static_cast<WideSigned>(x) * y >> BITS); })
                : two<U>(step, mask, [](U x, U y) { return static_cast<U>(static_cast<Wide>(x) * y >> BITS); });
            return true;
        case Op::Div:
        case Op::Rem: {
            bool const rest = step.op == Op::Rem;
            auto const* b = in<U>(step, 1);
            for (; mask != 0; mask &= mask - 1) {
                auto const i = __builtin_ctz(mask);
                if (b[i] == 0) {
                    d[i] = static_cast<U>(-1);  // what the hardware gives; no trap
                } else if (is_signed && static_cast<S>(b[i]) == -1) {
                    d[i] = rest ? 0 : static_cast<U>(0 - a[i]);
                } else if (is_signed) {
                    auto const x = static_cast<S>(a[i]), y = static_cast<S>(b[i]);
                    d[i] = static_cast<U>(rest ? x % y : x / y);
                } else {
                    d[i] = rest ? a[i] % b[i] : a[i] / b[i];
                }
            }
            return true;
        }
        case Op::Shl: {
            auto const* by = in<uint32_t>(step, 1);
            lanes(mask, [=](uint32_t i) { d[i] = by[i] >= BITS ? 0 : static_cast<U>(a[i] << by[i]); });
            return true;
        }
        case Op::Shr: {
            auto const* by = in<uint32_t>(step, 1);
            auto const* signed_a = in<S>(step, 0);
            if (is_signed) {
                lanes(mask,
                      [=](uint32_t i) { d[i] = static_cast<U>(signed_a[i] >> (by[i] >= BITS ? BITS - 1 : by[i])); });
            } else {
                lanes(mask, [=](uint32_t i) { d[i] = by[i] >= BITS ? 0 : static_cast<U>(a[i] >> by[i]); });
            }
            return true;
        }
        case Op::Bfe: {
            auto const *at = in<uint32_t>(step, 1), *count = in<uint32_t>(step, 2);
            lanes(mask, [=](uint32_t i) {
                uint32_t const begin = at[i] & 0xff, length = count[i] & 0xff;
                U const part = begin >= BITS ? 0 : a[i] >> begin;
                U const cut = length >= BITS ? part : part & ((U{1} << length) - 1);
                uint32_t const top = std::min(begin + length, BITS) - 1;
                bool const minus = is_signed && length > 0 && (a[i] >> top & 1);
                d[i] = minus && length < BITS ? cut | ~((U{1} << length) - 1) : cut;
            });
            return true;
        }
        case Op::Popc: {
            auto* count = to<uint32_t>(step, 0);
            lanes(mask, [=](uint32_t i) { count[i] = static_cast<uint32_t>(__builtin_popcountll(a[i])); });
            return true;
        }
        case Op::Clz: {
            auto* count = to<uint32_t>(step, 0);
            lanes(mask, [=](uint32_t i) {
                count[i] = a[i] == 0 ? BITS : static_cast<uint32_t>(__builtin_clzll(a[i])) - (64 - BITS);
            });
            return true;
        }
        case Op::Lop3: {
            auto const *b = in<U>(step, 1), *c = in<U>(step, 2);
            uint32_t const table = step.sub;
            lanes(mask, [=](uint32_t i) {
                U made = 0;
                for (uint32_t row = 0; row < 8; ++row) {
                    U const x = row & 4 ? a[i] : ~a[i], y = row & 2 ? b[i] : ~b[i], z = row & 1 ? c[i] : ~c[i];
                    made |= table >> row & 1 ? x & y & z : 0;
                }
                d[i] = made;
            });
            return true;
        }
        case Op::MulWide:
        case Op::MadWide: {
            if (sizeof(U) != 4 || size_of(step.type) != 4) {
                return false;
            }
            auto* wide = to<uint64_t>(step, 0);
            auto const *x = in<uint32_t>(step, 0), *y = in<uint32_t>(step, 1);
            bool const adds = step.op == Op::MadWide;
            auto const* z = adds ? in<uint64_t>(step, 2) : nullptr;
            lanes(mask, [=](uint32_t i) {
                uint64_t const product =
                    is_signed ? static_cast<uint64_t>(int64_t{static_cast<int32_t>(x[i])} * static_cast<int32_t>(y[i]))
                              : uint64_t{x[i]} * y[i];
                wide[i] = product + (adds ? z[i] : 0);
            });
            return true;
        }
        default:
            return false;
    }
}

bool Interpreter::arithmetic(Step const& step, uint32_t mask) {
    if (step.op == Op::Setp) {
        compare(step, mask);
        return true;
    }
    if (step.type == Type::Pred) {
        auto& into = warp_.predicates[step.to[0]];
        uint32_t const a = warp_.predicates[step.in[0]], b = step.in_count > 1 ? warp_.predicates[step.in[1]] : 0;
        uint32_t made = 0;
        switch (step.op) {
            case Op::And:
                made = a & b;
                break;
            case Op::Or:
                made = a | b;
                break;
            case Op::Xor:
                made = a ^ b;
                break;
            case Op::Not:
                made = ~a;
                break;
            case Op::Mov:
                made = a;
                break;
            default:
                return false;
        }
        into = (into & ~mask) | (made & mask);
        return true;
    }
    bool const wide = size_of(step.type) == 8;
    switch (step.op) {
        case Op::Mov:
            wide ? one<uint64_t>(step, mask, [](uint64_t a) { return a; })
                 : one<uint32_t>(step, mask, [](uint32_t a) { return a; });
            return (step.to_64 != 0) == wide && (step.in_64 != 0) == wide;
        case Op::Selp: {
            uint32_t const which = warp_.predicates[step.in[2]];
            auto pick = [&](auto* d, auto const* a, auto const* b) {
                lanes(mask, [=](uint32_t i) { d[i] = which >> i & 1 ? a[i] : b[i]; });
            };
            wide ? pick(to<uint64_t>(step, 0), in<uint64_t>(step, 0), in<uint64_t>(step, 1))
                 : pick(to<uint32_t>(step, 0), in<uint32_t>(step, 0), in<uint32_t>(step, 1));
            return true;
        }
        case Op::Pack: {
            auto const *low = in<uint32_t>(step, 0), *high = in<uint32_t>(step, 1);
            auto* wide_to = to<uint64_t>(step, 0);
            auto* narrow_to = to<uint32_t>(step, 0);
            wide ? lanes(mask, [=](uint32_t i) { wide_to[i] = uint64_t{high[i]} << 32 | low[i]; })
                 : lanes(mask, [=](uint32_t i) { narrow_to[i] = high[i] << 16 | (low[i] & 0xffff); });
            return true;
        }
        case Op::Unpack: {
            auto const* wide_in = in<uint64_t>(step, 0);
            auto const* narrow_in = in<uint32_t>(step, 0);
            auto *low = step.to[0] == NONE ? nullptr : to<uint32_t>(step, 0),
                 *high = step.to[1] == NONE ? nullptr : to<uint32_t>(step, 1);
            lanes(mask, [=](uint32_t i) {
                uint64_t const value = wide ? wide_in[i] : narrow_in[i];
                if (low != nullptr) {
                    low[i] = static_cast<uint32_t>(wide ? value : value & 0xffff);
                }
                if (high != nullptr) {
                    high[i] = static_cast<uint32_t>(wide ? value >> 32 : value >> 16);
                }
            });
            return true;
        }
        case Op::Prmt: {
            auto* d = to<uint32_t>(step, 0);
            auto const *a = in<uint32_t>(step, 0), *b = in<uint32_t>(step, 1), *how = in<uint32_t>(step, 2);
            lanes(mask, [=](uint32_t i) {
                uint64_t const both = uint64_t{b[i]} << 32 | a[i];
                uint32_t made = 0;
                for (uint32_t byte = 0; byte < 4; ++byte) {
                    uint32_t const pick = how[i] >> (4 * byte) & 0xf;
                    auto value = static_cast<uint32_t>(both >> (8 * (pick & 7)) & 0xff);
                    value = pick & 8 ? (value & 0x80 ? 0xff : 0) : value;
                    made |= value << (8 * byte);
                }
                d[i] = made;
            });
            return true;
        }
        case Op::Shf: {
            auto* d = to<uint32_t>(step, 0);
            auto const *a = in<uint32_t>(step, 0), *b = in<uint32_t>(step, 1), *by = in<uint32_t>(step, 2);
            bool const left = step.sub, wrap = step.flag;
            lanes(mask, [=](uint32_t i) {
                uint64_t const both = uint64_t{b[i]} << 32 | a[i];
                uint32_t const count = wrap ? by[i] & 31 : std::min(by[i], 32u);
                d[i] = static_cast<uint32_t>(left ? both << count >> 32 : both >> count);
            });
            return true;
        }
        default:
            break;
    }
    if (step.type == Type::F32) {
        return floating(step, mask);
    }
    if (wide) {
        return integer<int64_t, uint64_t>(step, mask);
    }
    if (size_of(step.type) == 4) {
        return integer<int32_t, uint32_t>(step, mask);
    }
    if (step.op == Op::MulWide && size_of(step.type) == 2) {
        bool const is_signed = step.type == Type::S16;
        two<uint32_t>(step, mask, [=](uint32_t a, uint32_t b) {
            return is_signed ? static_cast<uint32_t>(static_cast<int16_t>(a) * static_cast<int16_t>(b))
                             : (a & 0xffff) * (b & 0xffff);
        });
        return true;
    }
    // 16 bits: what needs no care about the upper half.
    bool const plain = step.op == Op::Add || step.op == Op::Sub || step.op == Op::Mul || step.op == Op::Mad ||
                       step.op == Op::And || step.op == Op::Or || step.op == Op::Xor || step.op == Op::Not ||
                       step.op == Op::Shl;
    if (size_of(step.type) != 2 || !plain || !integer<int32_t, uint32_t>(step, mask)) {
        return false;
    }
    auto* d = to<uint32_t>(step, 0);
    lanes(mask, [=](uint32_t i) { d[i] &= 0xffff; });
    return true;
}

}  // namespace gb10
