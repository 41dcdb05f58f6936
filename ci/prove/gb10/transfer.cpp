// Loads, stores, atomics, copies, and what goes from lane to lane. BSD-3-Clause, see LICENSE.
#include <algorithm>

#include "interpreter.h"

namespace gb10 {

namespace {

// What `size` bytes of memory are in a register of a given width.
uint64_t loaded(uint8_t const* from, Type type) {
    uint64_t bits = 0;
    std::memcpy(&bits, from, static_cast<size_t>(size_of(type)));
    switch (type) {
        case Type::S8:
            return static_cast<uint64_t>(int64_t{static_cast<int8_t>(bits)});
        case Type::S16:
            return static_cast<uint64_t>(int64_t{static_cast<int16_t>(bits)});
        case Type::S32:
            return static_cast<uint64_t>(int64_t{static_cast<int32_t>(bits)});
        default:
            return bits;
    }
}

template <class T>
T combined(Atomic what, T old, T with, T second, bool is_signed) {
    using S = std::make_signed_t<T>;
    switch (what) {
        case Atomic::Add:
            return old + with;
        case Atomic::Min:
            return is_signed ? static_cast<T>(std::min(static_cast<S>(old), static_cast<S>(with)))
                             : std::min(old, with);
        case Atomic::Max:
            return is_signed ? static_cast<T>(std::max(static_cast<S>(old), static_cast<S>(with)))
                             : std::max(old, with);
        case Atomic::And:
            return old & with;
        case Atomic::Or:
            return old | with;
        case Atomic::Xor:
            return old ^ with;
        case Atomic::Exch:
            return with;
        case Atomic::Cas:
            return old == with ? second : old;
        default:
            return old >= with ? 0 : old + 1;
    }
}

}  // namespace

void Interpreter::load(Step const& step, uint32_t mask) {
    uint32_t const size = static_cast<uint32_t>(size_of(step.type)), bytes = size * step.vector;
    lanes(mask, [&](uint32_t i) {
        uint64_t const address = value(step, 0, i) + static_cast<uint64_t>(step.offset);
        uint8_t const* from = nullptr;
        if (step.space == Space::Param) {
            if (address + bytes > machine_.parameters_.size()) {
                unknown("a read behind the parameters");
            }
            from = machine_.parameters_.data() + address;
        } else if (step.space == Space::Shared) {
            if (machine_.shared(warp_, i, address & ALL, bytes)) {
                machine_.saw_shared(warp_, i, static_cast<uint32_t>(address), bytes);
                from = block_.shared.data() + (address & ALL);
            }
        } else if ((from = machine_.global(warp_, i, address, bytes, false)) != nullptr) {
            machine_.saw_global(warp_, i, address, bytes, false);
        }
        for (int part = 0; part < step.vector; ++part) {
            uint64_t const bits = from == nullptr ? 0 : loaded(from + static_cast<uint32_t>(part) * size, step.type);
            if (step.to[part] == NONE) {
                continue;
            }
            if (step.to_64 >> part & 1) {
                to<uint64_t>(step, part)[i] = bits;
            } else {
                to<uint32_t>(step, part)[i] = static_cast<uint32_t>(bits);
            }
        }
    });
}

void Interpreter::store(Step const& step, uint32_t mask) {
    uint32_t const size = static_cast<uint32_t>(size_of(step.type)), bytes = size * step.vector;
    uint64_t address[LANES];
    alignas(8) uint8_t values[LANES * 16];
    if (bytes > 16) {
        unknown("a store of more than 16 bytes");
    }
    if (bytes < 4) {
        unknown("a store of fewer than 4 bytes, which no kernel had: races are looked for word by word");
    }
    bool const in_shared = step.space == Space::Shared;
    lanes(mask, [&](uint32_t i) {
        address[i] = value(step, 0, i) + static_cast<uint64_t>(step.offset);
        address[i] = in_shared ? address[i] & ALL : address[i];
        for (int part = 0; part < step.vector; ++part) {
            uint64_t const bits = value(step, part + 1, i);
            std::memcpy(values + i * 16 + static_cast<uint32_t>(part) * size, &bits, size);
        }
    });
    machine_.same_instruction(warp_, mask, address, bytes, values, in_shared ? "shared" : "global");
    lanes(mask, [&](uint32_t i) {
        uint8_t* into = nullptr;
        if (in_shared) {
            if (machine_.shared(warp_, i, address[i], bytes)) {
                machine_.wrote_shared(warp_, i, static_cast<uint32_t>(address[i]), bytes, values + i * 16, How::Plain);
                into = block_.shared.data() + address[i];
            }
        } else if ((into = machine_.global(warp_, i, address[i], bytes, true)) != nullptr) {
            machine_.wrote_global(warp_, i, address[i], bytes, values + i * 16, false);
        }
        if (into != nullptr) {
            std::memcpy(into, values + i * 16, bytes);
        }
    });
    if (step.space == Space::Param) {
        unknown("a store to the parameters");
    }
}

void Interpreter::atomic(Step const& step, uint32_t mask) {
    auto const what = static_cast<Atomic>(step.sub);
    uint32_t const size = static_cast<uint32_t>(size_of(step.type));
    bool const in_shared = step.space == Space::Shared, is_signed = step.type == Type::S32 || step.type == Type::S64;
    if (step.type == Type::F32 && what != Atomic::Add && what != Atomic::Exch) {
        unknown("an atomic that the executor does not know");
    }
    lanes(mask, [&](uint32_t i) {
        uint64_t const address = value(step, 0, i) + static_cast<uint64_t>(step.offset);
        for (int part = 0; part < step.vector; ++part) {
            uint64_t const at = (in_shared ? address & ALL : address) + static_cast<uint32_t>(part) * size;
            uint8_t* memory = nullptr;
            if (!in_shared) {
                memory = machine_.global(warp_, i, at, size, true);
            } else if (machine_.shared(warp_, i, at, size)) {
                memory = block_.shared.data() + at;
            }
            if (memory == nullptr) {
                continue;
            }
            uint64_t old = 0, made = 0;
            std::memcpy(&old, memory, size);
            uint64_t const with = value(step, part + 1, i), second = what == Atomic::Cas ? value(step, part + 2, i) : 0;
            if (step.type == Type::F32) {
                auto const sum = as_float(static_cast<uint32_t>(old)) + as_float(static_cast<uint32_t>(with));
                made = what == Atomic::Add ? as_bits(sum) : with;
            } else if (size == 4) {
                made = combined<uint32_t>(what, static_cast<uint32_t>(old), static_cast<uint32_t>(with),
                                          static_cast<uint32_t>(second), is_signed);
            } else {
                made = combined<uint64_t>(what, old, with, second, is_signed);
            }
            if (in_shared) {
                machine_.wrote_shared(warp_, i, static_cast<uint32_t>(at), size, &made, How::Atomic);
            } else {
                machine_.saw_global(warp_, i, at, size, true);
                machine_.wrote_global(warp_, i, at, size, &made, true);
            }
            std::memcpy(memory, &made, size);
            if (step.to_count > 0 && step.to[0] != NONE) {
                if (step.to_64 & 1) {
                    to<uint64_t>(step, 0)[i] = old;
                } else {
                    to<uint32_t>(step, 0)[i] = static_cast<uint32_t>(old);
                }
            }
        }
    });
}

void Interpreter::copy(Step const& step, uint32_t mask) {
    auto const bytes = static_cast<uint32_t>(step.offset);
    lanes(mask, [&](uint32_t i) {
        machine_.issue(warp_, i, value(step, 1, i), static_cast<uint32_t>(value(step, 0, i)) + step.target, bytes,
                       in<uint32_t>(step, 2)[i]);
    });
}

void Interpreter::load_matrix(Step const& step, uint32_t mask) {
    static uint16_t const nothing[8] = {};
    together(mask, "ldmatrix");
    for (int part = 0; part < step.vector; ++part) {
        uint16_t const* row[8];
        for (int r = 0; r < 8; ++r) {
            auto const lane = static_cast<uint32_t>(part * 8 + r);
            uint64_t const address = (value(step, 0, lane) + static_cast<uint64_t>(step.offset)) & ALL;
            row[r] = nothing;
            if (machine_.shared(warp_, lane, address, 16)) {
                machine_.saw_shared(warp_, lane, static_cast<uint32_t>(address), 16);
                row[r] = reinterpret_cast<uint16_t const*>(block_.shared.data() + address);
            }
        }
        if (step.vector > 1) {
            matrix(step.flag, row, scratch_[part]);
        } else {
            matrix(step.flag, row, scratch_[0]);
        }
    }
    for (int part = 0; part < step.vector; ++part) {
        auto* d = to<uint32_t>(step, part);
        lanes(mask, [&](uint32_t i) { d[i] = scratch_[part][i]; });
    }
}

void Interpreter::multiply(Step const& step, uint32_t mask) {
    together(mask, "mma");
    uint32_t* into[4];
    uint32_t const* from[10];
    for (int i = 0; i < 4; ++i) {
        into[i] = to<uint32_t>(step, i);
    }
    for (int i = 0; i < 10; ++i) {
        from[i] = in<uint32_t>(step, i);
    }
    mma(step.type, into, from);
}

// shfl: the clamp operand holds a segment's mask in bits 8 to 12 and the bound in bits 0 to 4.
void Interpreter::shuffle(Step const& step, uint32_t mask) {
    auto const *a = in<uint32_t>(step, 0), *by = in<uint32_t>(step, 1), *clamp = in<uint32_t>(step, 2),
               *members = in<uint32_t>(step, 3);
    uint32_t made[LANES], truth = 0;
    lanes(mask, [&](uint32_t i) {
        int32_t const segment = static_cast<int32_t>(clamp[i] >> 8 & 0x1f),
                      bound = static_cast<int32_t>(clamp[i] & 0x1f);
        int32_t const lane = static_cast<int32_t>(i), count = static_cast<int32_t>(by[i] & 0x1f);
        int32_t const most = (lane & segment) | (bound & ~segment), least = lane & segment;
        int32_t from = lane;
        bool good = false;
        switch (static_cast<Shuffle>(step.sub)) {
            case Shuffle::Up:
                from = lane - count;
                good = from >= most;
                break;
            case Shuffle::Down:
                from = lane + count;
                good = from <= most;
                break;
            case Shuffle::Bfly:
                from = lane ^ count;
                good = from <= most;
                break;
            case Shuffle::Idx:
                from = least | (count & ~segment);
                good = from <= most;
                break;
        }
        from = good ? from : lane;
        if ((mask >> from & 1) == 0) {
            machine_.found("divergence", false, "warp", warp_, 1u << i,
                           [] { return std::string("shfl reads a lane that is not here"); });
        }
        if ((members[i] & warp_.alive) != (members[i] & mask)) {
            machine_.found("divergence", false, "warp", warp_, members[i] & warp_.alive & ~mask,
                           [] { return std::string("shfl without lanes that are still alive"); });
        }
        made[i] = a[from];
        truth |= static_cast<uint32_t>(good) << i;
    });
    if (step.to[0] != NONE) {
        auto* d = to<uint32_t>(step, 0);
        lanes(mask, [&](uint32_t i) { d[i] = made[i]; });
    }
    if (step.to_count > 1 && step.to[1] != NONE) {
        auto& into = warp_.predicates[step.to[1]];
        into = (into & ~mask) | (truth & mask);
    }
}

void Interpreter::vote(Step const& step, uint32_t mask) {
    if (mask == 0) {
        return;
    }
    auto const members = in<uint32_t>(step, 1)[__builtin_ctz(mask)] & mask;
    uint32_t const given = warp_.predicates[step.in[0]], said = (step.flag ? ~given : given) & members;
    if (step.sub == 0) {
        auto* d = to<uint32_t>(step, 0);
        lanes(mask, [=](uint32_t i) { d[i] = said; });
        return;
    }
    bool const truth = step.sub == 1 ? said != 0 : said == members;
    auto& into = warp_.predicates[step.to[0]];
    into = truth ? into | mask : into & ~mask;
}

}  // namespace gb10
