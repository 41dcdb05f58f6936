// The loop over a warp's instructions: guards, branches, who is where. BSD-3-Clause, see LICENSE.
#include "interpreter.h"

namespace gb10 {

void Interpreter::unknown(char const* why) const {
    auto const& code = machine_.kernel_->code[warp_.pc];
    throw Stop(std::string(why) + ", PTX line " + std::to_string(code.line) + ": " + code.text + " (in " +
               machine_.kernel_->name + ")");
}

void Interpreter::together(uint32_t mask, char const* what) {
    if (mask != warp_.alive) {
        machine_.found("divergence", false, "warp", warp_, warp_.alive & ~mask,
                       [&] { return std::string(what) + " without lanes that are still alive"; });
    }
}

// Lanes that are elsewhere wait for their turn: the smallest pc runs first, and lanes that meet go on together.
void Interpreter::regroup() {
    auto& others = warp_.others;
    if (warp_.active != 0) {
        others.push_back({warp_.pc, warp_.active});
    }
    warp_.pc = ~0u;
    for (auto const& group : others) {
        warp_.pc = std::min(warp_.pc, group.pc);
    }
    warp_.active = 0;
    warp_.next = ~0u;
    size_t kept = 0;
    for (auto const& group : others) {
        if (group.pc == warp_.pc) {
            warp_.active |= group.mask;
        } else {
            warp_.next = std::min(warp_.next, group.pc);
            others[kept++] = group;
        }
    }
    others.resize(kept);
}

bool Interpreter::branch(uint32_t mask, uint32_t target) {
    if (mask == 0) {
        return false;
    }
    if (mask == warp_.active) {
        warp_.pc = target;
    } else {
        warp_.others.push_back({target, mask});
        warp_.active &= ~mask;
        ++warp_.pc;
        warp_.next = std::min(warp_.next, target);
    }
    return true;
}

void Interpreter::leave(uint32_t mask) {
    warp_.alive &= ~mask;
    warp_.active &= ~mask;
    ++warp_.pc;
}

Pause Interpreter::run(uint64_t share) {
    auto const* steps = machine_.kernel_->steps.data();
    auto* executed = machine_.kernel_->executed.data();
    for (uint64_t done = 0;; ++done) {
        if (warp_.pc >= warp_.next || warp_.active == 0) {
            if (warp_.alive == 0) {
                return Pause::Done;
            }
            regroup();
        }
        if (done >= share) {
            return Pause::Slice;
        }
        auto const& step = steps[warp_.pc];
        uint32_t mask = warp_.active;
        if (step.guard != NONE) {
            uint32_t const guard = warp_.predicates[step.guard];
            mask &= step.guard_not ? ~guard : guard;
        }
        ++executed[warp_.pc];
        ++machine_.instructions;
        switch (step.op) {
            case Op::Bra:
                if (branch(mask, step.target)) {
                    continue;
                }
                break;
            case Op::Ret:
                if (mask != 0) {
                    leave(mask);
                    continue;
                }
                break;
            case Op::Mma:
                multiply(step, mask);
                break;
            case Op::LdMatrix:
                load_matrix(step, mask);
                break;
            case Op::Ld:
                load(step, mask);
                break;
            case Op::St:
                store(step, mask);
                break;
            case Op::CpAsync:
                copy(step, mask);
                break;
            case Op::CpCommit:
                lanes(mask, [&](uint32_t i) { ++warp_.groups[i]; });
                break;
            case Op::CpWait:
                machine_.wait(warp_, mask, static_cast<uint32_t>(step.offset));
                break;
            case Op::CpWaitAll:
                lanes(mask, [&](uint32_t i) { ++warp_.groups[i]; });
                machine_.wait(warp_, mask, 0);
                break;
            case Op::Atom:
                atomic(step, mask);
                ++warp_.pc;
                if (step.space == Space::Global) {
                    return Pause::Yield;  // blocks share out work this way: let others have some
                }
                continue;
            case Op::BarSync:
            case Op::BarArrive: {
                if (mask == 0) {
                    break;
                }
                together(mask, "a barrier");
                auto const lane = static_cast<uint32_t>(__builtin_ctz(mask));
                auto const number = in<uint32_t>(step, 0)[lane];
                auto const threads = step.in_count > 1 ? in<uint32_t>(step, 1)[lane] : 0;
                bool const waits = step.op == Op::BarSync;
                bool const goes = machine_.arrive(warp_, number, threads, waits);
                ++warp_.pc;
                if (!goes) {
                    return Pause::Blocked;
                }
                continue;
            }
            case Op::WarpSync:
                machine_.tick(warp_);  // orders the lanes of a warp
                break;
            case Op::Fence:
            case Op::Nop:
                break;
            case Op::Shfl:
                shuffle(step, mask);
                break;
            case Op::Vote:
                vote(step, mask);
                break;
            case Op::Cvt:
                convert(step, mask);
                break;
            case Op::CvtPack:
                convert_pack(step, mask);
                break;
            case Op::Unknown:
                unknown("an instruction that the executor does not know");
            default:
                if (!arithmetic(step, mask)) {
                    unknown("an instruction of a type that the executor does not know");
                }
        }
        ++warp_.pc;
    }
}

}  // namespace gb10
