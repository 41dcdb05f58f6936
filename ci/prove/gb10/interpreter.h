// Runs one warp until it must wait, has ended, or has had its share. BSD-3-Clause, see LICENSE.
#pragma once

#include "machine.h"
#include "numbers.h"

namespace gb10 {

class Interpreter {
  public:
    Interpreter(Machine& machine, Block& block, Warp& warp) : machine_(machine), block_(block), warp_(warp) {}
    Pause run(uint64_t share);

  private:
    template <class T>
    T* to(Step const& step, int i) const {
        return reinterpret_cast<T*>(warp_.registers + step.to[i]);
    }
    template <class T>
    T const* in(Step const& step, int i) const {
        return reinterpret_cast<T const*>(warp_.registers + step.in[i]);
    }
    // Lanes one by one, or all 32 in a loop that the compiler turns into vectors.
    template <class Each>
    static void lanes(uint32_t mask, Each each) {
        if (mask == ALL) {
            for (uint32_t lane = 0; lane < LANES; ++lane) {
                each(lane);
            }
        } else {
            for (; mask != 0; mask &= mask - 1) {
                each(static_cast<uint32_t>(__builtin_ctz(mask)));
            }
        }
    }
    template <class T, class Function>
    void one(Step const& step, uint32_t mask, Function function) {
        auto* d = to<T>(step, 0);
        auto const* a = in<T>(step, 0);
        lanes(mask, [=](uint32_t i) { d[i] = function(a[i]); });
    }
    template <class T, class Function>
    void two(Step const& step, uint32_t mask, Function function) {
        auto* d = to<T>(step, 0);
        auto const *a = in<T>(step, 0), *b = in<T>(step, 1);
        lanes(mask, [=](uint32_t i) { d[i] = function(a[i], b[i]); });
    }
    template <class T, class Function>
    void three(Step const& step, uint32_t mask, Function function) {
        auto* d = to<T>(step, 0);
        auto const *a = in<T>(step, 0), *b = in<T>(step, 1), *c = in<T>(step, 2);
        lanes(mask, [=](uint32_t i) { d[i] = function(a[i], b[i], c[i]); });
    }

    bool arithmetic(Step const& step, uint32_t mask);  // arithmetic.cpp; false: not one of its instructions
    bool floating(Step const& step, uint32_t mask);
    template <class Signed, class Unsigned>
    bool integer(Step const& step, uint32_t mask);
    void compare(Step const& step, uint32_t mask);  // compare.cpp
    void convert(Step const& step, uint32_t mask);  // convert.cpp
    void convert_pack(Step const& step, uint32_t mask);
    void load(Step const& step, uint32_t mask);  // transfer.cpp
    void store(Step const& step, uint32_t mask);
    void atomic(Step const& step, uint32_t mask);
    void copy(Step const& step, uint32_t mask);
    void load_matrix(Step const& step, uint32_t mask);
    void shuffle(Step const& step, uint32_t mask);
    void vote(Step const& step, uint32_t mask);
    void multiply(Step const& step, uint32_t mask);
    void together(uint32_t mask, char const* what);  // all living lanes must be here
    bool branch(uint32_t mask, uint32_t target);
    void leave(uint32_t mask);
    void regroup();
    uint64_t value(Step const& step, int i, uint32_t lane) const {
        return step.in_64 >> i & 1 ? in<uint64_t>(step, i)[lane] : in<uint32_t>(step, i)[lane];
    }
    [[noreturn]] void unknown(char const* why) const;

    Machine& machine_;
    Block& block_;
    Warp& warp_;
    uint32_t scratch_[4][LANES];
};

}  // namespace gb10
