// PTX text to lines, statements and operands; decode.cpp makes instructions of them. BSD-3-Clause, see LICENSE.
#include "parse.h"

#include <algorithm>
#include <cctype>
#include <cstring>

namespace gb10 {

std::vector<std::string> split(std::string const& text, char by) {
    std::vector<std::string> parts;
    size_t begin = 0;
    for (size_t i = 0; i <= text.size(); ++i) {
        if (i == text.size() || text[i] == by) {
            parts.push_back(text.substr(begin, i - begin));
            begin = i + 1;
        }
    }
    return parts;
}

std::string strip(std::string const& text) {
    size_t begin = text.find_first_not_of(" \t\r\n");
    return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// Operands between commas, with {...} and [...] kept whole.
static std::vector<std::string> operands(std::string const& text) {
    std::vector<std::string> parts;
    std::string current;
    int depth = 0;
    for (char c : text) {
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        if (c == ',' && depth == 0) {
            parts.push_back(strip(current));
            current.clear();
        } else {
            current += c;
        }
    }
    if (!strip(current).empty()) {
        parts.push_back(strip(current));
    }
    return parts;
}

namespace {

struct Declared {
    uint32_t align = 1, size = 0;
    std::string name;
};

// `.param .align 8 .b8 name[1064]`, `.param .u64 .ptr .align 1 name`, `.shared .align 4 .b8 name[4]`.
Declared declaration(std::string const& text) {
    Declared made;
    uint32_t element = 0, natural = 1;
    std::string word;
    std::vector<std::string> words;
    for (auto const& part : split(text, ' ')) {
        for (auto const& piece : split(part, '\t')) {
            if (!piece.empty()) {
                words.push_back(piece);
            }
        }
    }
    for (size_t i = 0; i < words.size(); ++i) {
        auto const& w = words[i];
        if (w == ".align") {
            made.align = static_cast<uint32_t>(std::stoul(words.at(++i)));
        } else if (w == ".ptr") {
            while (i + 2 < words.size()) {
                ++i;  // what it says is of the pointer's target, not of the parameter
            }
        } else if (w[0] == '.' && w.size() >= 3 && std::isdigit(static_cast<unsigned char>(w[2]))) {
            element = natural = static_cast<uint32_t>(std::stoul(w.substr(2))) / 8;
        } else if (w[0] != '.') {
            word = w;
        }
    }
    uint32_t count = 1;
    if (auto bracket = word.find('['); bracket != std::string::npos) {
        auto inside = word.substr(bracket + 1, word.find(']') - bracket - 1);
        count = inside.empty() ? 0 : static_cast<uint32_t>(std::stoul(inside));
        word = word.substr(0, bracket);
    }
    made.align = std::max(made.align, natural);
    made.size = element * count;
    made.name = word;
    return made;
}

uint32_t aligned(uint32_t value, uint32_t align) {
    return (value + align - 1) / align * align;
}

struct Reader {
    std::vector<std::string> lines;
    uint32_t before = 0;  // lines of the file that come before these
    size_t at = 0;

    [[noreturn]] void fail(std::string const& why) const {
        throw Stop("PTX line " + std::to_string(before + at + 1) + ": " + why + ": " +
                   (at < lines.size() ? lines[at] : "end"));
    }

    void entry(Kernel* kernel) {
        auto const text = strip(lines[0]);
        Decoder decoder(*kernel);
        for (auto const& external : kernel->externals) {
            decoder.external(external);
        }
        if (text.find(')') == std::string::npos) {
            for (++at; at < lines.size() && strip(lines[at]).rfind(')', 0) != 0; ++at) {
                parameter(strip(lines[at]), *kernel, decoder);
            }
        }
        while (at < lines.size() && strip(lines[at]) != "{") {
            ++at;
        }
        std::string statement;
        uint32_t first = 0;
        int depth = 1;
        for (++at; at < lines.size(); ++at) {
            std::string line = lines[at];
            if (auto comment = line.find("//"); comment != std::string::npos) {
                line.resize(comment);
            }
            // A statement may go over several lines; several may share one; braces open scopes unless inside operands.
            for (size_t i = 0; i < line.size(); ++i) {
                char const c = line[i];
                bool const fresh = strip(statement).empty();
                if (fresh && c == '{') {
                    ++depth;
                    decoder.open();
                } else if (fresh && c == '}') {
                    decoder.close();
                    if (--depth == 0) {
                        decoder.finish();
                        return;
                    }
                } else if (c == ';') {
                    say(strip(statement), first, *kernel, decoder);
                    statement.clear();
                } else if (c == ':' && label(statement) && (i + 1 == line.size() || line[i + 1] != ':')) {
                    decoder.label(strip(statement));
                    statement.clear();
                } else {
                    if (fresh && !std::isspace(static_cast<unsigned char>(c))) {
                        first = static_cast<uint32_t>(before + at + 1);
                        statement.clear();
                    }
                    statement += c;
                }
            }
            statement += ' ';
        }
        fail("the body of " + kernel->name + " does not end");
    }

    static bool label(std::string const& statement) {
        auto const text = strip(statement);
        return !text.empty() && text[0] == '$' && text.find_first_of(" \t") == std::string::npos;
    }

    void parameter(std::string text, Kernel& kernel, Decoder& decoder) {
        if (text.empty()) {
            return;
        }
        if (text.back() == ',') {
            text.pop_back();
        }
        auto const made = declaration(text);
        if (text.rfind(".param", 0) != 0 || made.size == 0) {
            fail("a parameter of unknown size");
        }
        auto const offset = aligned(kernel.parameter_bytes, made.align);
        kernel.parameters.push_back({offset, made.size});
        kernel.parameter_bytes = offset + made.size;
        decoder.symbol(made.name, offset);
    }

    void say(std::string const& text, uint32_t line, Kernel& kernel, Decoder& decoder) {
        if (text.empty()) {
            return;
        }
        if (text.rfind(".reg", 0) == 0) {
            decoder.registers(strip(text.substr(4)));
        } else if (text.rfind(".shared", 0) == 0) {
            auto const made = declaration(text.substr(7));
            kernel.static_shared = aligned(kernel.static_shared, made.align);
            decoder.symbol(made.name, kernel.static_shared);
            kernel.static_shared += made.size;
        } else if (text.rfind(".pragma", 0) != 0 && text.rfind(".loc", 0) != 0) {
            auto begin = text.find_first_of(" \t");
            std::string guard, rest = text;
            if (text[0] == '@') {
                guard = strip(text.substr(1, begin - 1));
                rest = strip(text.substr(begin));
                begin = rest.find_first_of(" \t");
            }
            // `mov.b64 {a,b}, c` has a space behind its name; `mov.b64{a,b}` has none.
            begin = std::min(begin, rest.find('{'));
            auto const name = begin == std::string::npos ? rest : strip(rest.substr(0, begin));
            auto const tail = begin == std::string::npos ? "" : strip(rest.substr(begin));
            decoder.instruction(guard, name, operands(tail), line, text);
        }
    }
};

}  // namespace

Module parse(std::string const& text) {
    Module module;
    std::vector<std::string> externals;
    std::shared_ptr<Kernel> open;
    uint32_t number = 0;
    size_t begun = 0;
    for (size_t begin = 0; begin < text.size(); ++number) {
        auto const end = std::min(text.find('\n', begin), text.size());
        auto const starts = [&](char const* word) { return text.compare(begin, std::strlen(word), word) == 0; };
        if (open != nullptr) {
            if (starts("}")) {
                open->source = text.substr(begun, end - begun);
                module[open->name] = std::move(open);
            }
        } else if (starts(".extern .shared")) {
            auto const line = text.substr(begin, end - begin);
            externals.push_back(declaration(line.substr(7, line.find(';') - 7)).name);
        } else if (starts(".visible .entry") || starts(".entry") || starts(".weak .entry")) {
            auto const from = text.find(".entry", begin) + 6;
            open = std::make_shared<Kernel>();
            open->name = strip(text.substr(from, text.find('(', from) - from));
            open->first_line = number;
            open->externals = externals;
            begun = begin;
        } else if (starts(".visible .func") || starts(".func") || starts(".weak .func")) {
            throw Stop("PTX line " + std::to_string(number + 1) + ": a function that is not a kernel");
        }
        begin = end + 1;
    }
    if (module.empty() || open != nullptr) {
        throw Stop("not the PTX of kernels: " + std::to_string(number) + " lines, " + std::to_string(module.size()) +
                   " whole kernels");
    }
    return module;
}

void decode(Kernel& kernel) {
    if (!kernel.source.empty()) {
        Reader reader;
        reader.lines = split(kernel.source, '\n');
        reader.before = kernel.first_line;
        reader.entry(&kernel);
        kernel.source.clear();
    }
}

}  // namespace gb10
