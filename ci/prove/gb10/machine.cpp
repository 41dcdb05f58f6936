// A launch: its blocks one after another or in turns, the warps of a block in turns, and barriers between them.
// BSD-3-Clause, see LICENSE.
#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "interpreter.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gb10 {

namespace {

constexpr uint32_t SHARED_PER_SM = 102400, SHARED_RESERVED = 1024, THREADS_PER_SM = 1536;  // of 12.x

// The kernels are compiled with --use_fast_math: numbers too small for a normal float are zero.
class FlushToZero {
  public:
    FlushToZero() {
#if defined(__x86_64__)
        before_ = _mm_getcsr();
        _mm_setcsr(before_ | 0x8040);
#elif defined(__aarch64__)
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" ::"r"(before_ | (uint64_t{1} << 24)));
#endif
    }
    ~FlushToZero() {
#if defined(__x86_64__)
        _mm_setcsr(before_);
#elif defined(__aarch64__)
        asm volatile("msr fpcr, %0" ::"r"(before_));
#endif
    }
    FlushToZero(FlushToZero const&) = delete;
    FlushToZero& operator=(FlushToZero const&) = delete;

  private:
#if defined(__x86_64__)
    unsigned before_ = 0;
#else
    uint64_t before_ = 0;
#endif
};

}  // namespace

Machine::Machine(Settings given) : settings(given) {
    gb10_arena_enable(1);
    arena_ = gb10_arena_bounds();
    shadow_bytes_ = (arena_.end - arena_.begin) / 4 * sizeof(GlobalWord);
    void* memory =
        mmap(nullptr, shadow_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena_.begin == 0 || memory == MAP_FAILED) {
        throw Stop("no memory for the executor's arena");
    }
    shadow_ = static_cast<GlobalWord*>(memory);
}

Machine::~Machine() {
    munmap(shadow_, shadow_bytes_);
}

void Machine::load(std::string const& text) {
    for (auto& [name, kernel] : parse(text)) {
        module[name] = kernel;
    }
}

uint64_t Machine::random() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
}

void Machine::begin(Block& block, uint32_t index, Dim3 grid, Dim3 size) {
    auto const threads = size.x * size.y * size.z, count = (threads + LANES - 1) / LANES;
    auto const words = (shared_bytes_ + 3) / 4;
    block.index = index;
    block.at = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
    block.registers.resize(size_t{kernel_->register_bytes} * count + 64);
    block.predicates.assign(size_t{kernel_->predicates} * count, 0);
    block.shared.assign(size_t{words} * 4 + 16, static_cast<uint8_t>(settings.poison));
    block.words.assign(words, SharedWord{});
    block.reads.assign(size_t{words} * count, 0);
    block.barriers = {};
    block.warps.assign(count, Warp{});
    block.turn = 0;
    auto* registers = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(block.registers.data()) + 63) / 64 * 64);
    for (uint32_t w = 0; w < count; ++w) {
        auto& warp = block.warps[w];
        uint32_t const left = threads - w * LANES;
        warp.number = w;
        warp.active = warp.alive = left >= LANES ? ALL : (1u << left) - 1;
        warp.clock.assign(count, 0);
        warp.clock[w] = 1;
        warp.registers = registers + size_t{kernel_->register_bytes} * w;
        warp.predicates = block.predicates.data() + size_t{kernel_->predicates} * w;
        for (auto const& special : kernel_->specials) {
            if (special.wide == 1) {
                warp.predicates[special.reg] = special.value != 0 ? ALL : 0;
                continue;
            }
            for (uint32_t lane = 0; lane < LANES; ++lane) {
                using What = Special::What;
                uint32_t const thread = w * LANES + lane;
                uint64_t made = special.value;
                switch (special.what) {
                    case What::TidX:
                        made = thread % size.x;
                        break;
                    case What::TidY:
                        made = thread / size.x % size.y;
                        break;
                    case What::TidZ:
                        made = thread / size.x / size.y;
                        break;
                    case What::NtidX:
                        made = size.x;
                        break;
                    case What::NtidY:
                        made = size.y;
                        break;
                    case What::NtidZ:
                        made = size.z;
                        break;
                    case What::CtaidX:
                        made = block.at.x;
                        break;
                    case What::CtaidY:
                        made = block.at.y;
                        break;
                    case What::CtaidZ:
                        made = block.at.z;
                        break;
                    case What::NctaidX:
                        made = grid.x;
                        break;
                    case What::NctaidY:
                        made = grid.y;
                        break;
                    case What::NctaidZ:
                        made = grid.z;
                        break;
                    case What::Lane:
                        made = lane;
                        break;
                    case What::Warp:
                        made = w;
                        break;
                    default:
                        break;
                }
                std::memcpy(warp.registers + special.reg + lane * special.wide, &made, special.wide);
            }
        }
    }
}

// What a warp did before is told from what it does next.
void Machine::tick(Warp& warp) {
    if (++warp.clock[warp.number] >= 0xfff0) {
        throw Stop("a block with more than 65,000 barriers: the race check counts no further");
    }
}

// A warp at a barrier. True: it may go on. Warps count as 32 threads, as the hardware counts them.
bool Machine::arrive(Warp& warp, uint32_t number, uint32_t threads, bool waits) {
    if (number >= 16 || threads % LANES != 0) {
        throw Stop("barrier " + std::to_string(number) + " of " + std::to_string(threads) + " threads");
    }
    auto& barrier = block_->barriers[number];
    auto& warps = block_->warps;
    uint32_t alive = 0;
    for (auto const& other : warps) {
        alive += other.state == Warp::State::Done ? 0 : LANES;
    }
    uint32_t const expected = threads == 0 ? alive : threads;
    if (barrier.arrived != 0 && barrier.expected != expected) {
        found("barrier", false, "block", warp, ALL, [&] {
            return "barrier " + std::to_string(number) + " expects " + std::to_string(barrier.expected) +
                   " threads, a warp comes for " + std::to_string(expected);
        });
    }
    barrier.expected = expected;
    barrier.counted = threads != 0;
    barrier.arrived += LANES;
    barrier.clock.resize(warps.size(), 0);
    for (size_t v = 0; v < warps.size(); ++v) {
        barrier.clock[v] = std::max(barrier.clock[v], warp.clock[v]);
    }
    tick(warp);
    if (waits) {
        barrier.waiting.push_back(warp.number);
    }
    if (barrier.arrived < barrier.expected) {
        warp.state = waits ? Warp::State::Waiting : warp.state;
        return !waits;
    }
    if (barrier.arrived > barrier.expected) {
        found("barrier", false, "block", warp, ALL,
              [&] { return "more threads than barrier " + std::to_string(number) + " expects"; });
    }
    bool const orders = settings.named || number == 0;
    for (auto w : barrier.waiting) {
        warps[w].state = Warp::State::Ready;
        for (size_t v = 0; orders && v < warps.size(); ++v) {
            if (v != w) {
                warps[w].clock[v] = std::max(warps[w].clock[v], barrier.clock[v]);
            }
        }
    }
    barrier = {};
    return true;
}

bool Machine::turn(Block& block) {
    block_ = &block;
    for (;;) {
        std::vector<uint32_t> ready;
        for (auto const& warp : block.warps) {
            if (warp.state == Warp::State::Ready) {
                ready.push_back(warp.number);
            }
        }
        if (ready.empty()) {
            auto waits = std::find_if(block.warps.begin(), block.warps.end(),
                                      [](auto const& w) { return w.state == Warp::State::Waiting; });
            if (waits == block.warps.end()) {
                return true;
            }
            // Barriers without a count wait for those who are left; whoever has ended counts no more.
            bool freed = false;
            uint32_t alive = 0;
            for (auto const& warp : block.warps) {
                alive += warp.state == Warp::State::Done ? 0 : LANES;
            }
            for (auto& barrier : block.barriers) {
                if (barrier.arrived != 0 && !barrier.counted && barrier.arrived >= alive) {
                    for (auto w : barrier.waiting) {
                        block.warps[w].state = Warp::State::Ready;
                    }
                    barrier = {};
                    freed = true;
                }
            }
            if (freed) {
                continue;
            }
            --waits->pc;
            found("barrier", false, "block", *waits, waits->alive,
                  [] { return std::string("a barrier that never completes"); });
            throw Stop("the warps of block " + std::to_string(block.index) + " wait for each other: " + kernel_->name);
        }
        bool const ordered = settings.seed == 0;
        auto const which = ordered ? ready.front() : ready[random() % ready.size()];
        uint64_t const share = ordered ? ~uint64_t{0} : 1 + random() % 400;
        auto& warp = block.warps[which];
        auto const why = Interpreter(*this, block, warp).run(share);
        if (why == Pause::Done) {
            warp.state = Warp::State::Done;
            if (!warp.copies.empty()) {
                warp.pc = warp.copies.front().pc;
                found("unwaited", true, "shared", warp, ALL,
                      [&] { return std::to_string(warp.copies.size()) + " copies that nobody waited for"; });
            }
        }
        if (settings.limit != 0 && instructions > settings.limit) {
            throw Stop("more than " + std::to_string(settings.limit) + " instructions of warps: " + kernel_->name);
        }
        if (why == Pause::Yield) {
            return false;
        }
    }
}

void Machine::launch(std::string const& name, Dim3 grid, Dim3 size, uint32_t shared, void** arguments) {
    auto const found_kernel = module.find(name);
    if (found_kernel == module.end()) {
        throw Stop("no PTX was loaded for " + name);
    }
    FlushToZero flush;
    kernel_ = found_kernel->second.get();
    decode(*kernel_);
    if (kernel_->steps.size() > 0xffff) {
        throw Stop("a kernel of more than 65,535 instructions: " + name);
    }
    ++launch_;
    instructions = 0;
    same_.clear();
    grid_ = grid;
    size_ = size;
    random_ = settings.seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
    shared_bytes_ = kernel_->dynamic_shared + shared;
    known_.assign(kernel_->steps.size(), gb10_range{1, 0});
    parameters_.assign(kernel_->parameter_bytes, 0);
    for (size_t i = 0; i < kernel_->parameters.size(); ++i) {
        std::memcpy(parameters_.data() + kernel_->parameters[i].offset, arguments[i], kernel_->parameters[i].size);
    }
    auto const threads = size.x * size.y * size.z, blocks = grid.x * grid.y * grid.z;
    auto const a_sm = std::max(
        1u, std::min(SHARED_PER_SM / (shared_bytes_ + SHARED_RESERVED), THREADS_PER_SM / std::max(threads, 1u)));
    size_t const room = std::min<size_t>(size_t{a_sm} * static_cast<size_t>(settings.sms), blocks);
    std::vector<uint32_t> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    for (size_t i = blocks; settings.seed != 0 && i > 1; --i) {
        std::swap(order[i - 1], order[random() % i]);
    }
    // A block runs to its end unless it asks for more work (an atomic): then those that the device has room for share.
    std::vector<size_t> running;
    size_t next = 0, turn_of = 0;
    std::vector<bool> used(pool_.size(), false);
    while (next < blocks || !running.empty()) {
        size_t slot;
        if (next < blocks && running.size() < room) {
            slot = static_cast<size_t>(std::find(used.begin(), used.end(), false) - used.begin());
            if (slot == used.size()) {
                pool_.push_back(std::make_unique<Block>());
                used.push_back(false);
            }
            used[slot] = true;
            begin(*pool_[slot], order[next++], grid, size);
            running.push_back(slot);
            turn_of = running.size() - 1;
        } else {
            turn_of = settings.seed == 0 ? (turn_of + 1) % running.size() : random() % running.size();
        }
        slot = running[turn_of];
        if (turn(*pool_[slot])) {
            used[slot] = false;
            running.erase(running.begin() + static_cast<long>(turn_of));
        }
    }
    if (pool_.size() > 8) {
        pool_.resize(8);
    }
}

}  // namespace gb10
