// mov and cvt to instructions. BSD-3-Clause, see LICENSE.
#include "words.h"

namespace gb10 {

bool Decoder::move(Instruction& made, Words const& operands) {
    made.op = Op::Mov;
    if (operands[0][0] == '{' || operands[1][0] == '{') {
        bool const packs = operands[1][0] == '{';
        auto const parts = inside(operands[packs ? 1 : 0]);
        made.op = packs ? Op::Pack : Op::Unpack;
        if (parts.size() != 2 || size_of(made.type) < 4) {
            return false;
        }
        Type const half = size_of(made.type) == 8 ? Type::B32 : Type::B16;
        if (packs) {
            put(made, operands[0], made.type);
            take(made, parts[0], half);
            take(made, parts[1], half);
        } else {
            put(made, parts[0], half);
            put(made, parts[1], half);
            take(made, operands[1], made.type);
        }
        return true;
    }
    put(made, operands[0], made.type);
    take(made, operands[1], made.type);
    return true;
}

bool Decoder::convert(Instruction& made, Words const& words, Words const& operands) {
    std::vector<Type> types;
    for (auto const& word : words) {
        if (auto found = TYPES.find(word); found != TYPES.end()) {
            types.push_back(found->second);
        }
    }
    if (types.size() != 2) {
        return false;
    }
    bool const relu = has(words, "relu"), packs = operands.size() == 3;
    bool const eight =
        types[0] == Type::E4M3 || types[0] == Type::E5M2 || types[1] == Type::E4M3 || types[1] == Type::E5M2;
    made.type = types[0];
    made.from = types[1];
    made.op = packs ? Op::CvtPack : Op::Cvt;
    made.flag = has(words, "satfinite");
    uint8_t round = static_cast<uint8_t>(Round::Nearest);
    pick<Round>(words,
                {{"rzi", Round::Zero},
                 {"rz", Round::Zero},
                 {"rmi", Round::Down},
                 {"rm", Round::Down},
                 {"rpi", Round::Up},
                 {"rp", Round::Up},
                 {"rni", Round::Nearest}},
                round);
    made.sub = round;
    if (relu || has(words, "sat") || types[0] == Type::F64 || types[1] == Type::F64 ||
        (eight && !packs && types[0] != Type::F16X2)) {
        return false;
    }
    put(made, operands[0], types[0] == Type::E4M3 || types[0] == Type::E5M2 ? Type::B16 : types[0]);
    for (size_t i = 1; i < operands.size(); ++i) {
        take(made, operands[i], types[1] == Type::E4M3 || types[1] == Type::E5M2 ? Type::B16 : types[1]);
    }
    bool const good_pack = types[1] == Type::F32 && (types[0] == Type::BF16X2 || types[0] == Type::F16X2 || eight);
    return packs ? good_pack : true;
}

}  // namespace gb10
