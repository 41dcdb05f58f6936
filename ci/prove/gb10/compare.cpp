// setp: 32 comparisons to the bits of a predicate. BSD-3-Clause, see LICENSE.
#include "interpreter.h"

namespace gb10 {

void Interpreter::compare(Step const& step, uint32_t mask) {
    uint32_t truth = 0;
    auto const kind = static_cast<Compare>(step.sub);
    auto with = [&](auto const* a, auto const* b) {
        auto gather = [&](auto test) {
            uint32_t bits = 0;
            for (uint32_t i = 0; i < LANES; ++i) {
                bits |= static_cast<uint32_t>(test(a[i], b[i])) << i;
            }
            truth = bits;
        };
        switch (kind) {
            case Compare::Eq:
                gather([](auto x, auto y) { return x == y; });
                break;
            case Compare::Ne:
                gather([](auto x, auto y) { return x < y || x > y; });
                break;
            case Compare::Lt:
                gather([](auto x, auto y) { return x < y; });
                break;
            case Compare::Le:
                gather([](auto x, auto y) { return x <= y; });
                break;
            case Compare::Gt:
                gather([](auto x, auto y) { return x > y; });
                break;
            case Compare::Ge:
                gather([](auto x, auto y) { return x >= y; });
                break;
            case Compare::Equ:
                gather([](auto x, auto y) { return !(x < y || x > y); });
                break;
            case Compare::Neu:
                gather([](auto x, auto y) { return !(x == y); });
                break;
            case Compare::Ltu:
                gather([](auto x, auto y) { return !(x >= y); });
                break;
            case Compare::Leu:
                gather([](auto x, auto y) { return !(x > y); });
                break;
            case Compare::Gtu:
                gather([](auto x, auto y) { return !(x <= y); });
                break;
            case Compare::Geu:
                gather([](auto x, auto y) { return !(x < y); });
                break;
            case Compare::Num:
                gather([](auto x, auto y) { return x == x && y == y; });
                break;
            case Compare::Nan:
                gather([](auto x, auto y) { return x != x || y != y; });
                break;
        }
    };
    switch (step.type) {
        case Type::F32:
            with(in<float>(step, 0), in<float>(step, 1));
            break;
        case Type::S64:
            with(in<int64_t>(step, 0), in<int64_t>(step, 1));
            break;
        case Type::B64:
        case Type::U64:
            with(in<uint64_t>(step, 0), in<uint64_t>(step, 1));
            break;
        case Type::S32:
            with(in<int32_t>(step, 0), in<int32_t>(step, 1));
            break;
        case Type::B32:
        case Type::U32:
            with(in<uint32_t>(step, 0), in<uint32_t>(step, 1));
            break;
        case Type::S16:
        case Type::B16:
        case Type::U16: {
            int32_t a[LANES], b[LANES];
            bool const is_signed = step.type == Type::S16;
            for (uint32_t i = 0; i < LANES; ++i) {
                uint32_t const x = in<uint32_t>(step, 0)[i], y = in<uint32_t>(step, 1)[i];
                a[i] = is_signed ? static_cast<int16_t>(x) : static_cast<uint16_t>(x);
                b[i] = is_signed ? static_cast<int16_t>(y) : static_cast<uint16_t>(y);
            }
            with(static_cast<int32_t const*>(a), static_cast<int32_t const*>(b));
            break;
        }
        default:
            unknown("a comparison of a type that the executor does not know");
    }
    auto& into = warp_.predicates[step.to[0]];
    into = (into & ~mask) | (truth & mask);
}

}  // namespace gb10
