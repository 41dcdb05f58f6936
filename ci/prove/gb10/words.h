// The words of an instruction's name, and what they mean. BSD-3-Clause, see LICENSE.
#pragma once

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "parse.h"

namespace gb10 {

using Words = std::vector<std::string>;

inline std::unordered_map<std::string, Type> const TYPES = {
    {"b8", Type::U8},         {"u8", Type::U8},       {"s8", Type::S8},       {"b16", Type::B16},
    {"u16", Type::U16},       {"s16", Type::S16},     {"b32", Type::B32},     {"u32", Type::U32},
    {"s32", Type::S32},       {"f32", Type::F32},     {"b64", Type::B64},     {"u64", Type::U64},
    {"s64", Type::S64},       {"f64", Type::F64},     {"pred", Type::Pred},   {"f16", Type::F16},
    {"bf16", Type::BF16},     {"e4m3", Type::E4M3},   {"e5m2", Type::E5M2},   {"f16x2", Type::F16X2},
    {"bf16x2", Type::BF16X2}, {"e4m3x2", Type::E4M3}, {"e5m2x2", Type::E5M2},
};

inline bool has(Words const& words, char const* word) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

template <class Value>
bool pick(Words const& words, std::vector<std::pair<char const*, Value>> const& table, uint8_t& into) {
    for (auto const& [word, value] : table) {
        if (has(words, word)) {
            into = static_cast<uint8_t>(value);
            return true;
        }
    }
    return false;
}

inline Words inside(std::string const& text) {
    Words found;
    for (auto const& part : split(text.substr(1, text.size() - 2), ',')) {
        found.push_back(strip(part));
    }
    return found;
}

}  // namespace gb10
