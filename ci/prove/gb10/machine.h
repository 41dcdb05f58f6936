// The state of a launch: blocks, warps, memory and what is known of every access. BSD-3-Clause, see LICENSE.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "arena.h"
#include "program.h"
#include "report.h"

namespace gb10 {

struct Settings {
    int sms = 48;
    uint64_t seed = 0;   // 0: warps and blocks in order; other seeds: as they fall
    bool lazy = false;   // copies land at the wait, not at their issue
    int poison = 0xff;   // what shared memory holds before it is written
    uint64_t limit = 0;  // warp instructions a launch may take; 0: any number
    bool named = true;   // false: named barriers order nothing, as racecheck sees them
};

struct Dim3 {
    uint32_t x = 1, y = 1, z = 1;
};

// An asynchronous copy that has been issued and not been waited for.
struct Copy {
    uint32_t lane, group, to, bytes, filled, pc;
    uintptr_t from;
};

struct Warp {
    enum class State : uint8_t { Ready, Waiting, Done };
    struct Group {
        uint32_t pc, mask;
    };
    State state = State::Ready;
    uint32_t number = 0, pc = 0, active = 0, alive = 0, next = ~0u;  // next: the smallest pc of the lanes elsewhere
    std::vector<Group> others;
    uint8_t* registers = nullptr;
    uint32_t* predicates = nullptr;
    std::vector<uint32_t> clock;  // a vector clock over the block's warps
    std::vector<Copy> copies;
    std::array<uint32_t, LANES> groups{};  // copy groups that a lane has closed
};

struct Barrier {
    uint32_t arrived = 0, expected = 0;  // threads
    bool counted = false;                // the count was given, so it stays when warps end
    std::vector<uint32_t> clock, waiting;
};

// A four-byte word of shared memory: its last writer, and the lanes of the warp that read it last.
struct SharedWord {
    enum : uint8_t { Unwritten, Written, InFlight };
    enum : uint8_t { Several = LANES };  // as `lane`: atomics of more than one
    uint16_t clock, pc;
    uint8_t warp, state, lane;
    bool atomic;
    uint32_t readers;
    uint16_t read_clock;
    uint8_t reader;
};

struct Block {
    uint32_t index = 0;
    Dim3 at;
    std::vector<uint8_t> registers, shared;
    std::vector<uint32_t> predicates, reads;  // reads: of a word by a warp, clock << 16 | pc
    std::vector<SharedWord> words;
    std::vector<Warp> warps;
    std::array<Barrier, 16> barriers;
    size_t turn = 0;
};

// An access to a four-byte word of global memory.
struct Access {
    uint32_t launch, block;
    uint16_t clock, warp;
    uint32_t pc;
};
struct GlobalWord {
    Access write, read, earlier;  // `earlier`: a read by another warp than the last one's
};
constexpr uint16_t ATOMIC = 0x8000;

// The other party of a finding, if there is one.
struct Other {
    uint32_t block = 0, warp = 0, pc = ~0u;
};

enum class How : uint8_t { Plain, Copy, Atomic };  // a word of shared memory is written
enum class Pause : uint8_t { Slice, Blocked, Done, Yield };

class Machine {
  public:
    explicit Machine(Settings settings);
    ~Machine();
    Machine(Machine const&) = delete;
    Machine& operator=(Machine const&) = delete;

    void load(std::string const& text);
    // Runs a launch to its end. Throws Stop where it cannot go on.
    void launch(std::string const& name, Dim3 grid, Dim3 block, uint32_t shared, void** arguments);

    Settings settings;
    Findings findings;
    Module module;
    uint64_t instructions = 0;  // of warps, of the last launch

  private:
    friend class Interpreter;
    void begin(Block& block, uint32_t index, Dim3 grid, Dim3 size);
    bool turn(Block& block);  // lets warps run; true: the block has ended
    uint64_t random();

    // access.cpp
    uint8_t* global(Warp const& warp, uint32_t lane, uintptr_t address, uint32_t bytes, bool writes);
    bool shared(Warp const& warp, uint32_t lane, uint64_t address, uint32_t bytes);
    void saw_global(Warp const& warp, uint32_t lane, uintptr_t address, uint32_t bytes, bool atomic);
    void wrote_global(Warp const& warp, uint32_t lane, uintptr_t address, uint32_t bytes, void const* value,
                      bool atomic);
    void saw_shared(Warp const& warp, uint32_t lane, uint32_t address, uint32_t bytes);
    void wrote_shared(Warp const& warp, uint32_t lane, uint32_t address, uint32_t bytes, void const* value, How how);
    void issue(Warp& warp, uint32_t lane, uintptr_t from, uint32_t to, uint32_t bytes, uint32_t filled);
    void land(Copy const& copy);
    void wait(Warp& warp, uint32_t mask, uint32_t left);
    bool ordered(Warp const& warp, Access const& other) const;
    bool written_before(Warp const& warp, uintptr_t word, Access const& last) const;
    void race(char const* space, char const* what, Warp const& warp, uint32_t lane, uint64_t address, Other other);
    std::string place(uintptr_t address) const;
    void same_instruction(Warp const& warp, uint32_t mask, uint64_t const* address, uint32_t bytes,
                          uint8_t const* values, char const* space);
    // `what` gives the text, and is asked only once for each pair of instructions.
    template <class What>
    void found(char const* kind, bool note, char const* space, Warp const& warp, uint32_t lanes, What what,
               Other other = {}) {
        if (!findings.again(kernel_, kind, note ? ~0u : warp.pc, note ? ~0u : other.pc)) {
            report(kind, note, space, warp, lanes, what(), other);
        }
    }
    void report(char const* kind, bool note, char const* space, Warp const& warp, uint32_t lanes, std::string what,
                Other other);

    void tick(Warp& warp);
    bool arrive(Warp& warp, uint32_t number, uint32_t threads, bool waits);

    Kernel* kernel_ = nullptr;
    Block* block_ = nullptr;
    std::vector<uint8_t> parameters_;
    std::vector<gb10_range> known_;  // by instruction: the allocation that it touched last
    std::vector<std::unique_ptr<Block>> pool_;
    Dim3 grid_, size_;
    uint32_t launch_ = 0;
    uint32_t shared_bytes_ = 0;
    uint64_t random_ = 1;
    gb10_range arena_{};
    GlobalWord* shadow_ = nullptr;
    std::unordered_map<uintptr_t, std::vector<Access>> same_;  // who else wrote a word's present value in this launch
    size_t shadow_bytes_ = 0;
};

}  // namespace gb10
