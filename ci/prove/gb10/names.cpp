// Names of registers, constants, symbols and labels of one kernel. BSD-3-Clause, see LICENSE.
#include <cctype>
#include <cstring>

#include "parse.h"

namespace gb10 {

int size_of(Type type) {
    switch (type) {
        case Type::B64:
        case Type::U64:
        case Type::S64:
        case Type::F64:
            return 8;
        case Type::B16:
        case Type::U16:
        case Type::S16:
        case Type::F16:
        case Type::BF16:
            return 2;
        case Type::U8:
        case Type::S8:
        case Type::E4M3:
        case Type::E5M2:
        case Type::Pred:
            return 1;
        default:
            return 4;
    }
}

Decoder::Decoder(Kernel& kernel) : kernel_(kernel) {
    open();
}

void Decoder::open() {
    scopes_.emplace_back();
    scope_names_.push_back(scopes_.size() == 1 ? "" : "#" + std::to_string(++scope_count_));
}

void Decoder::close() {
    scopes_.pop_back();
    scope_names_.pop_back();
}

void Decoder::symbol(std::string const& name, uint32_t value) {
    if (placed_) {
        throw Stop("a variable in shared memory is declared after dynamic shared memory was used: " + name);
    }
    symbols_[name] = value;
}

void Decoder::external(std::string const& name) {
    externals_[name] = true;
}

void Decoder::registers(std::string const& declared) {
    auto const space = declared.find_first_of(" \t");
    auto const type = declared.substr(1, space - 1);
    uint8_t const wide = type == "pred" ? 1 : type.find("64") != std::string::npos ? 8 : 4;
    for (auto const& part : split(declared.substr(space), ',')) {
        auto name = strip(part);
        name = name.substr(0, name.find('<'));
        scopes_.back()[name] = wide;
    }
}

Reg Decoder::named(std::string const& name) {
    // `%r12` was declared as `%r<n>`, names of inline assembly as they are; the innermost scope counts.
    auto prefix = name;
    while (!prefix.empty() && std::isdigit(static_cast<unsigned char>(prefix.back()))) {
        prefix.pop_back();
    }
    for (size_t i = scopes_.size(); i-- > 0;) {
        auto found = scopes_[i].find(name);
        if (found == scopes_[i].end()) {
            found = scopes_[i].find(prefix);
        }
        if (found != scopes_[i].end()) {
            auto const [at, fresh] = numbers_.emplace(name + scope_names_[i], static_cast<Reg>(widths_.size()));
            if (fresh) {
                widths_.push_back(found->second);
            }
            return at->second;
        }
    }
    throw std::invalid_argument("no such register: " + name);
}

Reg Decoder::constant(uint64_t value, uint8_t wide) {
    auto const [at, fresh] =
        numbers_.emplace("=" + std::to_string(wide) + ":" + std::to_string(value), static_cast<Reg>(widths_.size()));
    if (fresh) {
        widths_.push_back(wide);
        kernel_.specials.push_back({Special::What::Constant, at->second, wide, value});
    }
    return at->second;
}

Reg Decoder::special(Special::What what) {
    auto const [at, fresh] =
        numbers_.emplace("special:" + std::to_string(static_cast<int>(what)), static_cast<Reg>(widths_.size()));
    if (fresh) {
        widths_.push_back(4);
        kernel_.specials.push_back({what, at->second, 4, 0});
    }
    return at->second;
}

Reg Decoder::operand(std::string const& text, Type type) {
    using What = Special::What;
    static std::unordered_map<std::string, What> const known = {
        {"%tid.x", What::TidX},       {"%tid.y", What::TidY},       {"%tid.z", What::TidZ},
        {"%ntid.x", What::NtidX},     {"%ntid.y", What::NtidY},     {"%ntid.z", What::NtidZ},
        {"%ctaid.x", What::CtaidX},   {"%ctaid.y", What::CtaidY},   {"%ctaid.z", What::CtaidZ},
        {"%nctaid.x", What::NctaidX}, {"%nctaid.y", What::NctaidY}, {"%nctaid.z", What::NctaidZ},
        {"%laneid", What::Lane},      {"%warpid", What::Warp},
    };
    uint8_t const wide = size_of(type) == 8 ? 8 : 4;
    if (auto found = known.find(text); found != known.end()) {
        return special(found->second);
    }
    if (text[0] == '%' || std::isalpha(static_cast<unsigned char>(text[0]))) {
        try {
            return named(text);
        } catch (std::invalid_argument const&) {
        }
    }
    if (text.rfind("0f", 0) == 0 || text.rfind("0F", 0) == 0) {
        return constant(std::stoul(text.substr(2), nullptr, 16), 4);
    }
    if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-') {
        bool const negative = text[0] == '-';
        auto value = std::stoull(text.substr(negative), nullptr, 0);
        value = negative ? 0 - value : value;
        if (type == Type::Pred) {  // mov.pred: 0, or -1 for all lanes
            return constant(value == 0 ? 0 : 1, 1);
        }
        return constant(wide == 8 ? value : value & ALL, wide);
    }
    if (externals_.count(text) != 0) {
        placed_ = true;
        return constant((kernel_.static_shared + 15) / 16 * 16, wide);
    }
    return constant(symbols_.at(text), wide);
}

void Decoder::put(Instruction& made, std::string const& text, Type type) {
    if (text == "_") {
        made.to.push_back(NONE);
        made.wide.insert(made.wide.begin() + static_cast<long>(made.to.size()) - 1, size_of(type) == 8 ? 8 : 4);
        return;
    }
    auto const reg = named(text);
    made.to.push_back(reg);
    made.wide.insert(made.wide.begin() + static_cast<long>(made.to.size()) - 1, widths_[static_cast<size_t>(reg)]);
}

void Decoder::take(Instruction& made, std::string const& text, Type type) {
    auto const reg = operand(text, type);
    made.in.push_back(reg);
    made.wide.push_back(widths_[static_cast<size_t>(reg)]);
}

// `[%rd1+8]`, `[%r2+-16]`, `[name+4]`, `[%r1]`: a register, and an offset that the instruction holds.
void Decoder::address(Instruction& made, std::string const& text) {
    auto const inner = strip(text.substr(1, text.size() - 2));
    auto const plus = inner.find('+');
    auto const base = strip(inner.substr(0, plus));
    made.offset = plus == std::string::npos ? 0 : std::stoll(strip(inner.substr(plus + 1)));
    take(made, base, Type::U32);
}

void Decoder::label(std::string const& name) {
    labels_[name] = static_cast<uint32_t>(kernel_.code.size());
}

void Decoder::finish() {
    Instruction last;
    last.op = Op::Ret;
    last.text = "the end";
    kernel_.code.push_back(last);  // a label at the end has something to point to
    for (auto const& [index, name] : jumps_) {
        auto const found = labels_.find(name);
        if (found == labels_.end()) {
            throw Stop("PTX line " + std::to_string(kernel_.code[index].line) + ": no label " + name);
        }
        kernel_.code[index].target = found->second;
    }
    kernel_.dynamic_shared = (kernel_.static_shared + 15) / 16 * 16;
    allocate(kernel_, widths_);
    for (auto const& made : kernel_.code) {
        Step step{};
        step.op = made.op;
        step.type = made.type;
        step.from = made.from;
        step.space = made.space;
        step.sub = made.sub;
        step.vector = made.vector;
        step.flag = made.flag;
        step.guard_not = made.guard_not;
        step.guard = made.guard;
        step.offset = made.offset;
        step.target = made.target;
        step.to_count = static_cast<uint8_t>(made.to.size());
        step.in_count = static_cast<uint8_t>(made.in.size());
        if (made.to.size() > 4 || made.in.size() > 10) {
            throw Stop("PTX line " + std::to_string(made.line) + ": more operands than expected: " + made.text);
        }
        for (size_t i = 0; i < made.to.size(); ++i) {
            step.to[i] = made.to[i];
            step.to_64 |= static_cast<uint16_t>((made.wide[i] == 8) << i);
        }
        for (size_t i = 0; i < made.in.size(); ++i) {
            step.in[i] = made.in[i];
            step.in_64 |= static_cast<uint16_t>((made.wide[made.to.size() + i] == 8) << i);
        }
        kernel_.steps.push_back(step);
    }
    kernel_.executed.assign(kernel_.steps.size(), 0);
}

}  // namespace gb10
