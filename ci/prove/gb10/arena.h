// Where tensors lie while kernels are executed. BSD-3-Clause, see LICENSE.
#pragma once

#include <cstddef>
#include <cstdint>

// Preloaded into the process (LD_PRELOAD), so that torch's CPU allocator gets its memory here: every tensor, those that
// the host code makes as well, is known to the byte, filled with a poison, and has a gap behind it.
extern "C" {
struct gb10_range {
    uintptr_t begin, end;
};
void gb10_arena_enable(int on);
void gb10_arena_poison(int byte);
gb10_range gb10_arena_bounds();                             // the whole arena
int gb10_arena_find(uintptr_t address, gb10_range* found);  // the live allocation that holds it; 0: none
uint64_t gb10_arena_live();
}
