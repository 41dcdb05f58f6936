// One PTX statement to one instruction. What is not here becomes Op::Unknown. BSD-3-Clause, see LICENSE.
#include "words.h"

namespace gb10 {

bool Decoder::arithmetic(Instruction& made, Words const& words, Words const& operands) {
    static std::unordered_map<std::string, std::pair<Op, size_t>> const plain = {
        {"add", {Op::Add, 3}},   {"sub", {Op::Sub, 3}},   {"div", {Op::Div, 3}},   {"rem", {Op::Rem, 3}},
        {"min", {Op::Min, 3}},   {"max", {Op::Max, 3}},   {"neg", {Op::Neg, 2}},   {"abs", {Op::Abs, 2}},
        {"not", {Op::Not, 2}},   {"and", {Op::And, 3}},   {"or", {Op::Or, 3}},     {"xor", {Op::Xor, 3}},
        {"shl", {Op::Shl, 3}},   {"shr", {Op::Shr, 3}},   {"fma", {Op::Fma, 4}},   {"rcp", {Op::Rcp, 2}},
        {"ex2", {Op::Ex2, 2}},   {"lg2", {Op::Lg2, 2}},   {"sqrt", {Op::Sqrt, 2}}, {"rsqrt", {Op::Rsqrt, 2}},
        {"tanh", {Op::Tanh, 2}}, {"sin", {Op::Sin, 2}},   {"cos", {Op::Cos, 2}},   {"popc", {Op::Popc, 2}},
        {"clz", {Op::Clz, 2}},   {"mul", {Op::Mul, 3}},   {"mad", {Op::Mad, 4}},   {"bfe", {Op::Bfe, 4}},
        {"bfi", {Op::Bfi, 5}},   {"prmt", {Op::Prmt, 4}}, {"lop3", {Op::Lop3, 5}},
    };
    auto const found = plain.find(words[0]);
    if (found == plain.end() || operands.size() != found->second.second || made.type == Type::None) {
        return false;
    }
    if (has(words, "sat") || has(words, "cc") || has(words, "f64") || made.type == Type::F16 ||
        made.type == Type::BF16 || made.type == Type::F16X2 || made.type == Type::BF16X2) {
        return false;
    }
    made.op = found->second.first;
    Type to = made.type;
    bool const integer = made.type != Type::F32;
    if (made.op == Op::Mul || made.op == Op::Mad) {
        if (has(words, "wide")) {
            if (size_of(made.type) == 8) {
                return false;
            }
            made.op = made.op == Op::Mul ? Op::MulWide : Op::MadWide;
            to = size_of(made.type) == 2 ? Type::B32 : Type::B64;
        } else if (has(words, "hi")) {
            made.op = made.op == Op::Mul ? Op::MulHi : Op::MadHi;
        } else if (integer && !has(words, "lo")) {
            return false;
        } else if (!integer && made.op == Op::Mad) {
            made.op = Op::Fma;
        }
    }
    if (made.op == Op::Shl || made.op == Op::Shr || made.op == Op::Bfe || made.op == Op::Bfi) {
        put(made, operands[0], to);
        for (size_t i = 1; i < operands.size(); ++i) {
            bool const value = i == 1 || (made.op == Op::Bfi && i == 2);
            take(made, operands[i], value ? made.type : Type::U32);
        }
        return true;
    }
    put(made, operands[0], made.op == Op::Popc || made.op == Op::Clz ? Type::U32 : to);
    size_t values = operands.size();
    if (made.op == Op::Lop3) {
        made.sub = static_cast<uint8_t>(std::stoul(operands[4], nullptr, 0));
        values = 4;
    }
    for (size_t i = 1; i < values; ++i) {
        bool const addend = i == 3 && (made.op == Op::MadWide);
        take(made, operands[i], addend ? to : made.type);
    }
    return true;
}

bool Decoder::memory(Instruction& made, Words const& words, Words const& operands) {
    made.space = has(words, "param")    ? Space::Param
                 : has(words, "shared") ? Space::Shared
                 : has(words, "global") ? Space::Global
                                        : Space::Generic;
    if (has(words, "local") || has(words, "const")) {
        return false;
    }
    made.vector = has(words, "v2") ? 2 : has(words, "v4") ? 4 : 1;
    if (words[0] == "ld" || words[0] == "ldu") {
        made.op = Op::Ld;
        for (auto const& name : operands[0][0] == '{' ? inside(operands[0]) : Words{operands[0]}) {
            put(made, name, made.type);
        }
        address(made, operands[1]);
        return made.to.size() == made.vector;
    }
    if (words[0] == "st") {
        made.op = Op::St;
        address(made, operands[0]);
        for (auto const& name : operands[1][0] == '{' ? inside(operands[1]) : Words{operands[1]}) {
            take(made, name, made.type);
        }
        return made.in.size() == size_t{made.vector} + 1;
    }
    if (words[0] == "atom" || words[0] == "red") {
        bool const gives = words[0] == "atom";
        made.op = Op::Atom;
        size_t const at = gives ? 1 : 0;
        if (gives) {
            put(made, operands[0], made.type);
        }
        address(made, operands[at]);
        for (auto const& name : operands[at + 1][0] == '{' ? inside(operands[at + 1]) : Words{operands[at + 1]}) {
            take(made, name, made.type);
        }
        if (operands.size() == at + 3) {
            take(made, operands[at + 2], made.type);
        }
        bool const known = pick<Atomic>(words,
                                        {{"add", Atomic::Add},
                                         {"min", Atomic::Min},
                                         {"max", Atomic::Max},
                                         {"and", Atomic::And},
                                         {"or", Atomic::Or},
                                         {"xor", Atomic::Xor},
                                         {"exch", Atomic::Exch},
                                         {"cas", Atomic::Cas},
                                         {"inc", Atomic::Inc}},
                                        made.sub);
        return known && (size_of(made.type) == 4 || size_of(made.type) == 8) && !(gives && made.vector > 1);
    }
    if (words[0] != "cp" || !has(words, "async")) {
        return false;
    }
    if (has(words, "commit_group")) {
        made.op = Op::CpCommit;
        return operands.empty();
    }
    if (has(words, "wait_all")) {
        made.op = Op::CpWaitAll;
        return operands.empty();
    }
    if (has(words, "wait_group")) {
        made.op = Op::CpWait;
        made.offset = std::stoll(operands[0]);
        return operands.size() == 1;
    }
    if (has(words, "bulk") || has(words, "mbarrier") || operands.size() < 3) {
        return false;
    }
    made.op = Op::CpAsync;
    address(made, operands[0]);
    auto const to_offset = made.offset;
    address(made, operands[1]);
    if (to_offset < 0 || made.offset != 0) {
        return false;
    }
    made.target = static_cast<uint32_t>(to_offset);
    made.offset = std::stoll(operands[2]);
    take(made, operands.size() > 3 ? operands[3] : operands[2], Type::U32);
    return operands.size() <= 4 && made.in.size() == 3 && (made.offset == 4 || made.offset == 8 || made.offset == 16);
}

bool Decoder::collective(Instruction& made, Words const& words, Words const& operands) {
    auto const& what = words[0];
    if (what == "shfl") {
        made.op = Op::Shfl;
        auto const bar = operands[0].find('|');
        put(made, operands[0].substr(0, bar), Type::B32);
        if (bar != std::string::npos) {
            put(made, strip(operands[0].substr(bar + 1)), Type::Pred);
        }
        for (size_t i = 1; i < 5; ++i) {
            take(made, operands.at(i), Type::B32);
        }
        return pick<Shuffle>(
            words, {{"idx", Shuffle::Idx}, {"up", Shuffle::Up}, {"down", Shuffle::Down}, {"bfly", Shuffle::Bfly}},
            made.sub);
    }
    if (what == "vote") {
        bool const ballot = has(words, "ballot");
        made.op = Op::Vote;
        made.sub = ballot ? 0 : has(words, "any") ? 1 : has(words, "all") ? 2 : 3;
        put(made, operands[0], ballot ? Type::B32 : Type::Pred);
        made.flag = operands[1][0] == '!';
        take(made, operands[1].substr(made.flag), Type::Pred);
        take(made, operands[2], Type::U32);
        return made.sub < 3;
    }
    if (what == "bar" || what == "barrier") {
        made.op = has(words, "arrive") ? Op::BarArrive : has(words, "warp") ? Op::WarpSync : Op::BarSync;
        for (auto const& text : operands) {
            take(made, text, Type::U32);
        }
        bool const known = has(words, "sync") || has(words, "arrive");
        return known && !has(words, "red") && !has(words, "cluster") && !operands.empty();
    }
    if (what == "ldmatrix") {
        made.op = Op::LdMatrix;
        made.vector = has(words, "x4") ? 4 : has(words, "x2") ? 2 : 1;
        made.flag = has(words, "trans");
        for (auto const& name : inside(operands[0])) {
            put(made, name, Type::B32);
        }
        address(made, operands[1]);
        return has(words, "m8n8") && has(words, "b16") && made.to.size() == made.vector;
    }
    if (what == "mma") {
        made.op = Op::Mma;
        bool const wide = has(words, "m16n8k32"), half = has(words, "m16n8k16");
        if (words.size() != 10 || (!wide && !half) || words[6] != "f32" || words[9] != "f32" || words[7] != words[8]) {
            return false;
        }
        made.type = TYPES.count(words[7]) ? TYPES.at(words[7]) : Type::None;
        for (auto const& name : inside(operands[0])) {
            put(made, name, Type::F32);
        }
        for (size_t i = 1; i < 4; ++i) {
            for (auto const& name : inside(operands[i])) {
                take(made, name, i < 3 ? Type::B32 : Type::F32);
            }
        }
        bool const fits = wide ? made.type == Type::E4M3 || made.type == Type::E5M2
                               : made.type == Type::BF16 || made.type == Type::F16;
        return fits && made.to.size() == 4 && made.in.size() == 10;
    }
    return false;
}

bool Decoder::decode(Instruction& made, Words const& words, Words const& operands) {
    for (auto const& word : words) {
        if (auto found = TYPES.find(word); found != TYPES.end() && made.type == Type::None) {
            made.type = found->second;
        }
    }
    auto const& what = words[0];
    if (what == "mov") {
        return move(made, operands);
    }
    if (what == "cvta") {
        if (has(words, "shared") || has(words, "local") || has(words, "const")) {
            return false;
        }
        return move(made, operands);
    }
    if (what == "cvt") {
        return convert(made, words, operands);
    }
    if (what == "bra") {
        made.op = Op::Bra;
        jumps_.emplace_back(kernel_.code.size(), operands.at(0));
        return true;
    }
    if (what == "ret" || what == "exit") {
        made.op = Op::Ret;
        return true;
    }
    if (what == "setp") {
        made.op = Op::Setp;
        if (operands.size() != 3 || operands[0].find('|') != std::string::npos) {
            return false;
        }
        put(made, operands[0], Type::Pred);
        take(made, operands[1], made.type);
        take(made, operands[2], made.type);
        return pick<Compare>(words,
                             {{"eq", Compare::Eq},
                              {"ne", Compare::Ne},
                              {"lt", Compare::Lt},
                              {"le", Compare::Le},
                              {"gt", Compare::Gt},
                              {"ge", Compare::Ge},
                              {"equ", Compare::Equ},
                              {"neu", Compare::Neu},
                              {"ltu", Compare::Ltu},
                              {"leu", Compare::Leu},
                              {"gtu", Compare::Gtu},
                              {"geu", Compare::Geu},
                              {"num", Compare::Num},
                              {"nan", Compare::Nan},
                              {"lo", Compare::Lt},
                              {"ls", Compare::Le},
                              {"hi", Compare::Gt},
                              {"hs", Compare::Ge}},
                             made.sub);
    }
    if (what == "selp") {
        made.op = Op::Selp;
        put(made, operands[0], made.type);
        take(made, operands[1], made.type);
        take(made, operands[2], made.type);
        take(made, operands[3], Type::Pred);
        return true;
    }
    if (what == "shf") {
        made.op = Op::Shf;
        made.sub = has(words, "l");
        made.flag = has(words, "wrap");
        put(made, operands[0], Type::B32);
        for (size_t i = 1; i < 4; ++i) {
            take(made, operands.at(i), Type::B32);
        }
        return made.type == Type::B32;
    }
    if (what == "membar" || what == "fence") {
        made.op = Op::Fence;
        return true;
    }
    if (what == "nanosleep" || what == "prefetch" || what == "griddepcontrol") {
        made.op = Op::Nop;
        return true;
    }
    return arithmetic(made, words, operands) || collective(made, words, operands) || memory(made, words, operands);
}

void Decoder::instruction(std::string const& guard, std::string const& name, Words const& operands, uint32_t line,
                          std::string const& text) {
    Instruction made;
    made.line = line;
    made.text = text;
    if (!guard.empty()) {
        made.guard_not = guard[0] == '!';
        made.guard = named(guard.substr(made.guard_not));
    }
    Words words;
    for (auto const& word : split(name, '.')) {
        words.push_back(word);
    }
    bool known = false;
    try {
        known = decode(made, words, operands);
    } catch (std::logic_error const&) {  // an operand that is missing, or a number that is none
    }
    if (!known) {
        made.op = Op::Unknown;
        made.to.clear();
        made.in.clear();
        made.wide.clear();
    }
    if (made.op == Op::Unknown || made.op != Op::Nop) {
        kernel_.code.push_back(std::move(made));
    }
}

}  // namespace gb10
