// The preloaded allocator of the executor's tensors: see arena.h. BSD-3-Clause, see LICENSE.
#include "arena.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#define EXPORT __attribute__((visibility("default")))

extern "C" {
void __libc_free(void*);
void* __libc_memalign(size_t, size_t);
}

namespace {

constexpr size_t SIZE = size_t{8} << 30, ALIGN = 512, GAP = 4096;  // a CUDA allocation is aligned to 512 bytes
constexpr size_t MOST = 1 << 20;

struct Allocation {
    uintptr_t begin, end;
    bool live;
};

std::mutex lock;
unsigned char* base = nullptr;
size_t used = 0, highest = 0;
Allocation* table = nullptr;
size_t count = 0, live = 0;
bool enabled = false;
int poison = 0xff;

bool start() {
    if (base == nullptr) {
        auto const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* memory = mmap(nullptr, SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
        void* entries = mmap(nullptr, MOST * sizeof(Allocation), PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED || entries == MAP_FAILED) {
            return false;
        }
        base = static_cast<unsigned char*>(memory);
        table = static_cast<Allocation*>(entries);
    }
    return true;
}

Allocation* at(uintptr_t address) {
    auto* end = table + count;
    auto* next = std::upper_bound(table, end, address, [](uintptr_t a, Allocation const& b) { return a < b.begin; });
    return next == table ? nullptr : next - 1;
}

}  // namespace

extern "C" {

EXPORT void gb10_arena_enable(int on) {
    std::lock_guard<std::mutex> held(lock);
    enabled = on != 0 && start();
}
EXPORT void gb10_arena_poison(int byte) {
    poison = byte;
}
EXPORT gb10_range gb10_arena_bounds() {
    auto const begin = reinterpret_cast<uintptr_t>(base);
    return {begin, begin + (base == nullptr ? 0 : SIZE)};
}
EXPORT uint64_t gb10_arena_live() {
    return live;
}
EXPORT int gb10_arena_find(uintptr_t address, gb10_range* found) {
    std::lock_guard<std::mutex> held(lock);
    auto const* entry = count == 0 ? nullptr : at(address);
    if (entry == nullptr || !entry->live || address >= entry->end) {
        return 0;
    }
    *found = {entry->begin, entry->end};
    return 1;
}

EXPORT int posix_memalign(void** made, size_t align, size_t size) {
    {
        std::lock_guard<std::mutex> held(lock);
        size_t const step = std::max(align, ALIGN);
        size_t const begin = (used + GAP + step - 1) / step * step;
        if (enabled && count < MOST && begin + size + GAP < SIZE) {
            auto* memory = base + begin;
            std::memset(base + used, poison, begin + size + GAP - used);
            used = begin + size;
            highest = std::max(highest, used + GAP);
            table[count++] = {reinterpret_cast<uintptr_t>(memory), reinterpret_cast<uintptr_t>(memory) + size, true};
            ++live;
            *made = memory;
            return 0;
        }
    }
    *made = __libc_memalign(align, size);
    return *made == nullptr ? ENOMEM : 0;
}

EXPORT void free(void* memory) {
    auto* address = static_cast<unsigned char*>(memory);
    if (base == nullptr || address < base || address >= base + SIZE) {
        __libc_free(memory);
        return;
    }
    std::lock_guard<std::mutex> held(lock);
    auto* entry = at(reinterpret_cast<uintptr_t>(address));
    if (entry != nullptr && entry->begin == reinterpret_cast<uintptr_t>(address) && entry->live) {
        entry->live = false;
        --live;
        // What nothing points to any more is used again; torch's own libraries keep a buffer or two.
        while (count > 0 && !table[count - 1].live) {
            --count;
        }
        used = count == 0 ? 0 : table[count - 1].end - reinterpret_cast<uintptr_t>(base);
        if (live <= 2 && highest - used > (size_t{256} << 20)) {
            auto const kept = (used + GAP) / GAP * GAP;
            madvise(base + kept, highest - kept, MADV_DONTNEED);
            highest = kept;
        }
    }
}
}
