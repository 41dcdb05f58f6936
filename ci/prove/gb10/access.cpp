// Every access is checked here: bounds, alignment, what was written, and who else touched it. BSD-3-Clause, see
// LICENSE.
#include <cstdio>
#include <cstring>

#include "machine.h"

namespace gb10 {

namespace {

std::string hex(uint64_t value) {
    char text[24];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

}  // namespace

void Machine::report(char const* kind, bool note, char const* space, Warp const& warp, uint32_t lanes, std::string what,
                     Other other) {
    auto party = [this](uint32_t block, uint32_t number, uint32_t mask, uint32_t pc) {
        auto const& code = kernel_->code.at(pc);
        return Party{block, number, mask, code.line, code.text};
    };
    Finding made;
    made.kind = kind;
    made.note = note;
    made.space = space;
    made.what = std::move(what);
    made.kernel = kernel_->name;
    made.who = party(block_->index, warp.number, lanes, warp.pc);
    made.has_other = other.pc != ~0u;
    if (made.has_other) {
        made.other = party(other.block, other.warp, 0, other.pc);
    }
    findings.add(std::move(made));
}

void Machine::race(char const* space, char const* what, Warp const& warp, uint32_t lane, uint64_t address,
                   Other other) {
    auto text = [&] { return std::string(what) + " at " + (space[0] == 'g' ? place(address) : hex(address)); };
    found("race", false, space, warp, 1u << lane, text, other);
}

// ---- global memory ---------------------------------------------------------------------------------------------

std::string Machine::place(uintptr_t address) const {
    gb10_range range{};
    if (gb10_arena_find(address, &range)) {
        return "byte " + std::to_string(address - range.begin) + " of a tensor's " +
               std::to_string(range.end - range.begin);
    }
    for (uintptr_t back = 16; back <= 65536; back += 16) {
        if (gb10_arena_find(address - back, &range)) {
            return std::to_string(address - range.end) + " bytes behind a tensor of " +
                   std::to_string(range.end - range.begin);
        }
    }
    return hex(address) + ", in no tensor";
}

uint8_t* Machine::global(Warp const& warp, uint32_t lane, uintptr_t address, uint32_t bytes, bool writes) {
    auto& known = known_[warp.pc];
    if (address < known.begin || address + bytes > known.end) {
        gb10_range range{};
        if (!gb10_arena_find(address, &range) || address + bytes > range.end) {
            found("bounds", false, "global", warp, 1u << lane, [&] {
                return std::string(writes ? "a write of " : "a read of ") + std::to_string(bytes) + " bytes at " +
                       place(address);
            });
            return nullptr;
        }
        known = range;
    }
    if (address % bytes != 0) {
        found("misaligned", false, "global", warp, 1u << lane,
              [&] { return std::to_string(bytes) + " bytes at " + place(address); });
    }
    return reinterpret_cast<uint8_t*>(address);
}

// Whether an access of this launch happened before what the warp does now; other launches always did.
bool Machine::ordered(Warp const& warp, Access const& other) const {
    if (other.launch != launch_) {
        return true;
    }
    uint16_t const from = other.warp & ~ATOMIC;
    return other.block == block_->index && (from == warp.number || other.clock <= warp.clock[from]);
}

// A value that several blocks wrote alike may be read by each that wrote it before.
bool Machine::written_before(Warp const& warp, uintptr_t word, Access const& last) const {
    if (ordered(warp, last)) {
        return true;
    }
    auto const others = same_.find(word);
    if (others != same_.end()) {
        for (auto const& other : others->second) {
            if (ordered(warp, other)) {
                return true;
            }
        }
    }
    return false;
}

void Machine::saw_global(Warp const& warp, uint32_t lane, uintptr_t address, uint32_t bytes, bool atomic) {
    Access const now{launch_, block_->index, static_cast<uint16_t>(warp.clock[warp.number]),
                     static_cast<uint16_t>(warp.number | (atomic ? ATOMIC : 0)), warp.pc};
    for (uintptr_t at = address / 4; at * 4 < address + bytes; ++at) {
        auto& word = shadow_[at - arena_.begin / 4];
        if (!(atomic && (word.write.warp & ATOMIC)) && !written_before(warp, at, word.write)) {
            race("global", "a read of what another warp writes", warp, lane, at * 4,
                 {word.write.block, word.write.warp & ~uint32_t{ATOMIC}, word.write.pc});
        }
        if (word.read.launch == launch_ && (word.read.block != now.block || word.read.warp != now.warp)) {
            word.earlier = word.read;
        }
        word.read = now;
    }
}

void Machine::wrote_global(Warp const& warp, uint32_t lane, uintptr_t address, uint32_t bytes, void const* value,
                           bool atomic) {
    Access const now{launch_, block_->index, static_cast<uint16_t>(warp.clock[warp.number]),
                     static_cast<uint16_t>(warp.number | (atomic ? ATOMIC : 0)), warp.pc};
    bool const same = std::memcmp(reinterpret_cast<void const*>(address), value, bytes) == 0;
    for (uintptr_t at = address / 4; at * 4 < address + bytes; ++at) {
        auto& word = shadow_[at - arena_.begin / 4];
        if (word.write.launch == launch_ && !ordered(warp, word.write) && !(atomic && (word.write.warp & ATOMIC))) {
            if (same) {
                same_[at].push_back(word.write);
            } else {
                race("global", "a write over another warp's, with another value,", warp, lane, at * 4,
                     {word.write.block, word.write.warp & ~uint32_t{ATOMIC}, word.write.pc});
            }
        }
        for (auto const& read : {word.read, word.earlier}) {
            if (!same && !ordered(warp, read) && !(atomic && (read.warp & ATOMIC))) {
                race("global", "a write of what another warp reads", warp, lane, at * 4,
                     {read.block, read.warp & ~uint32_t{ATOMIC}, read.pc});
            }
        }
        if (!same && !same_.empty()) {
            same_.erase(at);
        }
        word.write = now;
    }
}

// ---- shared memory ---------------------------------------------------------------------------------------------

bool Machine::shared(Warp const& warp, uint32_t lane, uint64_t address, uint32_t bytes) {
    if (address + bytes > shared_bytes_) {
        found("bounds", false, "shared", warp, 1u << lane,
              [&] { return std::to_string(bytes) + " bytes at " + hex(address) + " of " + hex(shared_bytes_); });
        return false;
    }
    if (address % bytes != 0) {
        found("misaligned", false, "shared", warp, 1u << lane,
              [&] { return std::to_string(bytes) + " bytes at " + hex(address); });
        return false;
    }
    return true;
}

// What nobody wrote may be read where the value is thrown away (rows that are masked later): a second poison tells.
void Machine::saw_shared(Warp const& warp, uint32_t lane, uint32_t address, uint32_t bytes) {
    uint32_t const count = static_cast<uint32_t>(block_->warps.size()), me = warp.number;
    uint32_t const stamp = warp.clock[me] << 16 | warp.pc;
    for (uint32_t at = address / 4; at * 4 < address + bytes; ++at) {
        auto& word = block_->words[at];
        if (word.state == SharedWord::Unwritten) {
            found("unwritten", true, "shared", warp, 1u << lane,
                  [&] { return "a read of " + hex(at * 4) + ", which nobody wrote"; });
        } else if (word.state == SharedWord::InFlight) {
            found("unwaited", false, "shared", warp, 1u << lane,
                  [&] { return "a read of " + hex(at * 4) + " before its copy was waited for"; },
                  {block_->index, word.warp, word.pc});
        } else if (word.warp != me && word.clock > warp.clock[word.warp]) {
            race("shared", "a read of what another warp writes", warp, lane, at * 4,
                 {block_->index, word.warp, word.pc});
        } else if (word.warp == me && word.clock == warp.clock[me] && word.lane != lane) {
            race("shared", "a read of what another lane writes", warp, lane, at * 4, {block_->index, me, word.pc});
        }
        bool const first = word.reader != me || word.read_clock != warp.clock[me];
        word.readers = (first ? 0 : word.readers) | 1u << lane;
        word.read_clock = static_cast<uint16_t>(warp.clock[me]);
        word.reader = static_cast<uint8_t>(me);
        block_->reads[size_t{at} * count + me] = stamp;
    }
}

void Machine::wrote_shared(Warp const& warp, uint32_t lane, uint32_t address, uint32_t bytes, void const* value,
                           How how) {
    uint32_t const count = static_cast<uint32_t>(block_->warps.size()), me = warp.number;
    bool const same = value != nullptr && std::memcmp(block_->shared.data() + address, value, bytes) == 0;
    for (uint32_t at = address / 4; at * 4 < address + bytes; ++at) {
        auto& word = block_->words[at];
        if (word.state == SharedWord::InFlight) {
            found("race", false, "shared", warp, 1u << lane,
                  [&] { return "a write to " + hex(at * 4) + " while a copy to it is under way"; },
                  {block_->index, word.warp, word.pc});
        } else if (how == How::Atomic && word.state == SharedWord::Unwritten) {
            found("unwritten", true, "shared", warp, 1u << lane,
                  [&] { return "an atomic on " + hex(at * 4) + ", which nobody wrote"; });
        } else if (word.state == SharedWord::Written && !same && !(how == How::Atomic && word.atomic)) {
            if (word.warp != me ? word.clock > warp.clock[word.warp]
                                : word.clock == warp.clock[me] && word.lane != lane && word.pc != warp.pc) {
                race("shared",
                     word.warp != me ? "a write over another warp's, with another value,"
                                     : "a write over another lane's, with another value,",
                     warp, lane, at * 4, {block_->index, word.warp, word.pc});
            }
        }
        if (!same) {
            bool const others = (word.readers & ~(1u << lane)) != 0;
            if (others && word.reader == me && word.read_clock == warp.clock[me]) {
                race("shared", "a write of what another lane reads", warp, lane, at * 4,
                     {block_->index, me, block_->reads[size_t{at} * count + me] & 0xffff});
            }
            auto const* reads = block_->reads.data() + size_t{at} * count;
            bool late = false;
            for (uint32_t v = 0; v < count; ++v) {
                late |= (reads[v] >> 16) > warp.clock[v];
            }
            for (uint32_t v = 0; late && v < count; ++v) {
                if (v != me && (reads[v] >> 16) > warp.clock[v]) {
                    race("shared", "a write of what another warp reads", warp, lane, at * 4,
                         {block_->index, v, reads[v] & 0xffff});
                }
            }
        }
        bool const more = how == How::Atomic && word.atomic && word.warp == me && word.clock == warp.clock[me];
        word.lane = static_cast<uint8_t>(more && word.lane != lane ? SharedWord::Several : lane);
        word.clock = static_cast<uint16_t>(warp.clock[me]);
        word.pc = static_cast<uint16_t>(warp.pc);
        word.warp = static_cast<uint8_t>(me);
        word.atomic = how == How::Atomic;
        word.state = how == How::Copy ? SharedWord::InFlight : SharedWord::Written;
    }
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------

void Machine::issue(Warp& warp, uint32_t lane, uintptr_t from, uint32_t to, uint32_t bytes, uint32_t filled) {
    if (!shared(warp, lane, to, bytes)) {
        return;
    }
    if (filled > bytes) {
        found("bounds", false, "global", warp, 1u << lane,
              [] { return std::string("a copy of more bytes than it has room for"); });
        filled = bytes;
    }
    if (filled > 0) {
        if (from % bytes != 0) {
            found("misaligned", false, "global", warp, 1u << lane, [&] { return "a copy from " + place(from); });
        }
        // The allocation must hold what is read, not the rest of the 16 bytes.
        if (global(warp, lane, from, filled == bytes ? bytes : 1, false) == nullptr ||
            (filled != bytes && global(warp, lane, from + filled - 1, 1, false) == nullptr)) {
            filled = 0;
        } else {
            saw_global(warp, lane, from, filled, false);
        }
    }
    wrote_shared(warp, lane, to, bytes, nullptr, How::Copy);
    Copy const copy{lane, warp.groups[lane], to, bytes, filled, warp.pc, from};
    if (!settings.lazy) {
        land(copy);
    }
    warp.copies.push_back(copy);
}

void Machine::land(Copy const& copy) {
    auto* to = block_->shared.data() + copy.to;
    if (copy.filled > 0) {
        std::memcpy(to, reinterpret_cast<void const*>(copy.from), copy.filled);
    }
    std::memset(to + copy.filled, 0, copy.bytes - copy.filled);
}

// Copies land of which at most `left` groups of their lane are younger. A copy counts as written here.
void Machine::wait(Warp& warp, uint32_t mask, uint32_t left) {
    size_t kept = 0;
    auto const clock = static_cast<uint16_t>(warp.clock[warp.number]);
    for (auto const& copy : warp.copies) {
        if ((mask >> copy.lane & 1) == 0 || copy.group + left >= warp.groups[copy.lane]) {
            warp.copies[kept++] = copy;
            continue;
        }
        if (settings.lazy) {
            land(copy);
        }
        for (uint32_t at = copy.to / 4; at * 4 < copy.to + copy.bytes; ++at) {
            auto& word = block_->words[at];
            if (word.state == SharedWord::InFlight && word.warp == warp.number && word.pc == copy.pc) {
                word.state = SharedWord::Written;
                word.clock = clock;
            }
        }
    }
    warp.copies.resize(kept);
}

// ---- one instruction's lanes against each other ----------------------------------------------------------------

void Machine::same_instruction(Warp const& warp, uint32_t mask, uint64_t const* address, uint32_t bytes,
                               uint8_t const* values, char const* space) {
    uint64_t previous = 0;
    bool rising = true;
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        auto const lane = static_cast<uint32_t>(__builtin_ctz(rest));
        rising &= address[lane] >= previous;
        previous = address[lane] + bytes;
    }
    for (uint32_t rest = rising ? 0 : mask; rest != 0; rest &= rest - 1) {
        auto const a = static_cast<uint32_t>(__builtin_ctz(rest));
        for (uint32_t more = rest & (rest - 1); more != 0; more &= more - 1) {
            auto const b = static_cast<uint32_t>(__builtin_ctz(more));
            bool const meet = address[a] < address[b] + bytes && address[b] < address[a] + bytes;
            if (meet && (address[a] != address[b] || std::memcmp(values + a * 16, values + b * 16, bytes) != 0)) {
                found("conflict", false, space, warp, 1u << a | 1u << b,
                      [&] { return "two lanes write different values to " + hex(address[a]); });
                return;
            }
        }
    }
}

}  // namespace gb10
