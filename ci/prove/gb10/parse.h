// What parse.cpp and decode.cpp share. BSD-3-Clause, see LICENSE.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace gb10 {

std::vector<std::string> split(std::string const& text, char by);
std::string strip(std::string const& text);

// Builds one kernel's instructions. Until `finish`, a register is a number in order of its first sight.
class Decoder {
  public:
    explicit Decoder(Kernel& kernel);
    void open();
    void close();
    void symbol(std::string const& name, uint32_t value);
    void external(std::string const& name);       // the dynamic part of shared memory
    void registers(std::string const& declared);  // `.b32 %r<12>`
    void label(std::string const& name);
    void instruction(std::string const& guard, std::string const& name, std::vector<std::string> const& operands,
                     uint32_t line, std::string const& text);
    void finish();

  private:
    struct Name {
        std::string name;  // as written, e.g. %r12
        uint8_t wide;      // bytes a lane: 1 (predicate), 4 or 8
    };
    using Scope = std::unordered_map<std::string, uint8_t>;  // prefix or name -> bytes a lane

    Reg named(std::string const& name);
    Reg constant(uint64_t value, uint8_t wide);
    Reg special(Special::What what);
    Reg operand(std::string const& text, Type type);
    void address(Instruction& made, std::string const& text);
    bool decode(Instruction& made, std::vector<std::string> const& words, std::vector<std::string> const& operands);
    bool arithmetic(Instruction& made, std::vector<std::string> const& words, std::vector<std::string> const& operands);
    bool memory(Instruction& made, std::vector<std::string> const& words, std::vector<std::string> const& operands);
    bool collective(Instruction& made, std::vector<std::string> const& words, std::vector<std::string> const& operands);
    bool move(Instruction& made, std::vector<std::string> const& operands);
    bool convert(Instruction& made, std::vector<std::string> const& words, std::vector<std::string> const& operands);
    void put(Instruction& made, std::string const& text, Type type);
    void take(Instruction& made, std::string const& text, Type type);

    Kernel& kernel_;
    std::vector<Scope> scopes_;
    std::vector<std::string> scope_names_;
    int scope_count_ = 0;
    bool placed_ = false;          // whether code has seen where dynamic shared memory begins
    std::vector<uint8_t> widths_;  // by register number
    std::unordered_map<std::string, Reg> numbers_;
    std::unordered_map<std::string, uint32_t> symbols_, labels_;
    std::unordered_map<std::string, bool> externals_;
    std::vector<std::pair<size_t, std::string>> jumps_;
};

}  // namespace gb10
