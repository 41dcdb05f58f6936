// What the checks found. BSD-3-Clause, see LICENSE.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace gb10 {

// One party of a finding: who touched the memory, and with which instruction.
struct Party {
    uint32_t block = 0, warp = 0, lanes = 0, line = 0;
    std::string text;
};

struct Finding {
    std::string kind;   // race, bounds, unwritten, misaligned, unwaited, conflict, barrier, divergence
    bool note = false;  // harmless unless another run shows an effect
    std::string space, what, kernel;
    Party who, other;
    bool has_other = false;
    uint64_t count = 1;
};

class Findings {
  public:
    // One of a kind for each pair of instructions, and one of a kind for each kernel where it is a note; the others are
    // counted, and nothing is written for them. `kernel` and `kind` are compared by address.
    bool again(void const* kernel, char const* kind, uint32_t at, uint32_t other) {
        auto const [place, fresh] = index_.emplace(std::make_tuple(kernel, kind, at, other), all_.size());
        if (!fresh) {
            ++all_[place->second].count;
        }
        return !fresh;
    }
    void add(Finding found) { all_.push_back(std::move(found)); }
    std::vector<Finding> take() {
        index_.clear();
        return std::move(all_);
    }

  private:
    std::vector<Finding> all_;
    std::map<std::tuple<void const*, char const*, uint32_t, uint32_t>, size_t> index_;
};

}  // namespace gb10
