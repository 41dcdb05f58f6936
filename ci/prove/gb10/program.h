// A kernel's PTX, decoded once: what the interpreter runs. BSD-3-Clause, see LICENSE.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace gb10 {

constexpr int LANES = 32;
constexpr uint32_t ALL = 0xffffffffu;

// Thrown where the executor cannot go on: an instruction that it does not know, a launch that makes no sense.
struct Stop : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Op : uint8_t {
    Unknown,
    Nop,
    Mov,
    Pack,
    Unpack,
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Mad,
    MadWide,
    MadHi,
    Div,
    Rem,
    Min,
    Max,
    Neg,
    Abs,
    Not,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Fma,
    Rcp,
    Ex2,
    Lg2,
    Sqrt,
    Rsqrt,
    Tanh,
    Sin,
    Cos,
    Setp,
    Selp,
    Cvt,
    CvtPack,
    Popc,
    Clz,
    Bfe,
    Bfi,
    Prmt,
    Lop3,
    Shf,
    Ld,
    St,
    Atom,
    Shfl,
    Vote,
    Bra,
    Ret,
    BarSync,
    BarArrive,
    WarpSync,
    Fence,
    LdMatrix,
    Mma,
    CpAsync,
    CpCommit,
    CpWait,
    CpWaitAll,
};
enum class Type : uint8_t {
    None,
    B16,
    U16,
    S16,
    B32,
    U32,
    S32,
    F32,
    B64,
    U64,
    S64,
    F64,
    Pred,
    U8,
    S8,
    F16,
    BF16,
    E4M3,
    E5M2,
    F16X2,
    BF16X2
};
enum class Space : uint8_t { Generic, Param, Shared, Global };
enum class Compare : uint8_t { Eq, Ne, Lt, Le, Gt, Ge, Equ, Neu, Ltu, Leu, Gtu, Geu, Num, Nan };
enum class Atomic : uint8_t { Add, Min, Max, And, Or, Xor, Exch, Cas, Inc };
enum class Shuffle : uint8_t { Idx, Up, Down, Bfly };
enum class Round : uint8_t { Nearest, Zero, Up, Down };

int size_of(Type type);

// Where a value lives in a warp's registers: a byte offset (32 lanes of 4 or 8 bytes), or a predicate's number.
using Reg = int32_t;
constexpr Reg NONE = -1;

struct Instruction {
    Op op = Op::Unknown;
    Type type = Type::None;  // of the operation, or of the destination
    Type from = Type::None;  // of the source, where it differs
    Space space = Space::Generic;
    uint8_t sub = 0;     // Compare, Atomic, Shuffle, Round, or the lut of lop3
    uint8_t vector = 1;  // elements of a load, store, ldmatrix
    bool flag = false;   // .trans of ldmatrix, .wrap, relu
    bool guard_not = false;
    Reg guard = NONE;     // predicate
    std::vector<Reg> to;  // registers; NONE is the sink
    std::vector<Reg> in;
    std::vector<uint8_t> wide;  // bytes a lane has in `to`, then in `in`: 4 or 8; 1 for a predicate
    int64_t offset = 0;         // of an address; the byte count of a copy
    uint32_t target = 0;        // of a branch; what a copy adds to its address in shared memory
    uint32_t line = 0;          // in the PTX file, counted from 1
    std::string text;
};

// The same for the interpreter: no heap behind it, in order of execution.
struct Step {
    Op op;
    Type type, from;
    Space space;
    uint8_t sub, vector;
    bool flag, guard_not;
    Reg guard;
    uint16_t to_64 = 0, in_64 = 0;  // a bit for each operand that has 8 bytes a lane
    uint8_t to_count = 0, in_count = 0;
    Reg to[4], in[10];
    int64_t offset;
    uint32_t target;
};

struct Parameter {
    uint32_t offset, size;
};

// A register's initial content: constants and what a warp knows of itself.
struct Special {
    enum class What : uint8_t {
        Constant,
        TidX,
        TidY,
        TidZ,
        NtidX,
        NtidY,
        NtidZ,
        CtaidX,
        CtaidY,
        CtaidZ,
        NctaidX,
        NctaidY,
        NctaidZ,
        Lane,
        Warp,
        Clock
    };
    What what;
    Reg reg;
    uint8_t wide;
    uint64_t value;
};

struct Kernel {
    std::string name;
    std::string source;  // its text, until it is decoded
    uint32_t first_line = 0;
    std::vector<std::string> externals;  // names of the dynamic part of shared memory
    std::vector<Instruction> code;
    std::vector<Step> steps;
    std::vector<uint64_t> executed;  // by warps, since the module was loaded
    std::vector<Parameter> parameters;
    std::vector<Special> specials;
    uint32_t parameter_bytes = 0;
    uint32_t static_shared = 0;   // in-body variables; the dynamic part begins behind them
    uint32_t dynamic_shared = 0;  // where it begins
    uint32_t register_bytes = 0;
    uint32_t predicates = 0;
};

using Module = std::map<std::string, std::shared_ptr<Kernel>>;

// Every entry of a PTX file, by name, not decoded yet. Throws Stop on text without one.
Module parse(std::string const& text);

// Decodes a kernel if that was not done. Throws Stop on text that is not PTX as nvcc writes it; an instruction that the
// executor does not know becomes Op::Unknown, which stops when it is reached.
void decode(Kernel& kernel);

// Gives registers that are never alive together the same place: see registers.cpp.
void allocate(Kernel& kernel, std::vector<uint8_t> const& widths);

}  // namespace gb10
