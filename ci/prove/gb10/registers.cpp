// Virtual registers to places. nvcc numbers every value anew, up to 14,000 a kernel: each with 32 lanes and eight
// warps, that would be megabytes a block and a cache miss a step. Values that are never alive together share a place.
// BSD-3-Clause, see LICENSE.
#include <algorithm>
#include <queue>

#include "program.h"

namespace gb10 {

namespace {

using Bits = std::vector<uint64_t>;

bool test(Bits const& bits, Reg reg) {
    return bits[static_cast<size_t>(reg) / 64] >> (reg % 64) & 1;
}
void set(Bits& bits, Reg reg) {
    bits[static_cast<size_t>(reg) / 64] |= uint64_t{1} << (reg % 64);
}

struct Block {
    uint32_t begin, end;
    std::vector<size_t> after;
    Bits uses, kills, live;
};

std::vector<Block> blocks_of(std::vector<Instruction> const& code, size_t words) {
    std::vector<bool> leads(code.size() + 1, false);
    leads[0] = true;
    for (size_t i = 0; i < code.size(); ++i) {
        if (code[i].op == Op::Bra) {
            leads[code[i].target] = leads[i + 1] = true;
        } else if (code[i].op == Op::Ret) {
            leads[i + 1] = true;
        }
    }
    std::vector<Block> blocks;
    std::vector<size_t> of(code.size() + 1, 0);
    for (uint32_t i = 0; i < code.size(); ++i) {
        if (leads[i]) {
            blocks.push_back({i, i, {}, Bits(words), Bits(words), Bits(words)});
        }
        of[i] = blocks.size() - 1;
        blocks.back().end = i + 1;
    }
    for (size_t b = 0; b < blocks.size(); ++b) {
        auto const& last = code[blocks[b].end - 1];
        if (last.op == Op::Bra) {
            blocks[b].after.push_back(of[last.target]);
        }
        bool const falls = (last.op != Op::Bra && last.op != Op::Ret) || last.guard != NONE;
        if (falls && b + 1 < blocks.size()) {
            blocks[b].after.push_back(b + 1);
        }
    }
    return blocks;
}

}  // namespace

void allocate(Kernel& kernel, std::vector<uint8_t> const& widths) {
    auto const count = widths.size();
    auto blocks = blocks_of(kernel.code, count / 64 + 1);
    for (auto& block : blocks) {
        for (auto i = block.begin; i < block.end; ++i) {
            auto const& step = kernel.code[i];
            auto use = [&](Reg reg) {
                if (reg != NONE && !test(block.kills, reg)) {
                    set(block.uses, reg);
                }
            };
            use(step.guard);
            std::for_each(step.in.begin(), step.in.end(), use);
            for (auto reg : step.to) {
                if (reg == NONE) {
                    continue;
                }
                if (step.guard != NONE) {
                    use(reg);  // lanes that the guard leaves out keep the old value
                } else {
                    set(block.kills, reg);
                }
            }
        }
        block.live = block.uses;
    }
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t b = blocks.size(); b-- > 0;) {
            for (auto next : blocks[b].after) {
                for (size_t w = 0; w < blocks[b].live.size(); ++w) {
                    auto const more = blocks[b].live[w] | (blocks[next].live[w] & ~blocks[b].kills[w]);
                    changed |= more != blocks[b].live[w];
                    blocks[b].live[w] = more;
                }
            }
        }
    }
    // From the first to the last place in the text where a register is alive; holes in between are not used.
    struct Span {
        uint32_t first = ~0u, last = 0;
        Reg reg = NONE;
    };
    std::vector<Span> spans(count);
    auto touch = [&](Reg reg, uint32_t at) {
        auto& span = spans[static_cast<size_t>(reg)];
        span.first = std::min(span.first, at);
        span.last = std::max(span.last, at);
    };
    for (auto const& block : blocks) {
        for (size_t w = 0; w < block.live.size(); ++w) {
            for (auto bits = block.live[w]; bits != 0; bits &= bits - 1) {
                touch(static_cast<Reg>(w * 64 + static_cast<size_t>(__builtin_ctzll(bits))), block.begin);
            }
        }
        for (auto next : block.after) {
            for (size_t w = 0; w < block.live.size(); ++w) {
                for (auto bits = blocks[next].live[w]; bits != 0; bits &= bits - 1) {
                    touch(static_cast<Reg>(w * 64 + static_cast<size_t>(__builtin_ctzll(bits))), block.end - 1);
                }
            }
        }
        for (auto i = block.begin; i < block.end; ++i) {
            auto const& step = kernel.code[i];
            for (auto const* list : {&step.to, &step.in}) {
                for (auto reg : *list) {
                    if (reg != NONE) {
                        touch(reg, i);
                    }
                }
            }
            if (step.guard != NONE) {
                touch(step.guard, i);
            }
        }
    }
    for (auto const& special : kernel.specials) {  // filled before the first step, and for every block
        spans[static_cast<size_t>(special.reg)].first = 0;
        spans[static_cast<size_t>(special.reg)].last = static_cast<uint32_t>(kernel.code.size());
    }
    std::vector<Span> order;
    for (size_t r = 0; r < count; ++r) {
        if (spans[r].first != ~0u) {
            order.push_back({spans[r].first, spans[r].last, static_cast<Reg>(r)});
        }
    }
    std::sort(order.begin(), order.end(),
              [](auto const& a, auto const& b) { return std::pair(a.first, a.reg) < std::pair(b.first, b.reg); });
    std::vector<Reg> place(count, NONE);
    for (uint8_t wide : {1, 4, 8}) {
        using Ending = std::pair<uint32_t, Reg>;
        std::priority_queue<Ending, std::vector<Ending>, std::greater<>> busy;
        std::vector<Reg> free;
        for (auto const& span : order) {
            if (widths[static_cast<size_t>(span.reg)] != wide) {
                continue;
            }
            // An instruction writes lanes one by one: what it writes must not lie on what it still reads.
            while (!busy.empty() && busy.top().first < span.first) {
                free.push_back(busy.top().second);
                busy.pop();
            }
            Reg at;
            if (!free.empty()) {
                at = free.back();
                free.pop_back();
            } else if (wide == 1) {
                at = static_cast<Reg>(kernel.predicates++);
            } else {
                at = static_cast<Reg>(kernel.register_bytes);
                kernel.register_bytes += uint32_t{wide} * LANES;
            }
            place[static_cast<size_t>(span.reg)] = at;
            busy.emplace(span.last, at);
        }
    }
    auto move = [&](Reg& reg) { reg = reg == NONE ? NONE : place[static_cast<size_t>(reg)]; };
    for (auto& step : kernel.code) {
        std::for_each(step.to.begin(), step.to.end(), move);
        std::for_each(step.in.begin(), step.in.end(), move);
        move(step.guard);
    }
    for (auto& special : kernel.specials) {
        move(special.reg);
    }
}

}  // namespace gb10
