"""Does it notice? One instruction of a kernel is changed at a time: do the cases that launch it come out wrong?"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ci.prove.gb10.cases import SMS, Case
from ci.prove.gb10.executable import Executable
from ci.verify import kernels
from flash_attn3_sm121.console import Block, Narrator, Table

FUNCTION = "ci.prove.gb10.check_mutants:run"
CASES = 20  # a mutant is tried in so many cases of each number of SMs
_TOUCH = ("cp.async", "bar.", "ldmatrix", "ld.shared", "st.", "@")  # begins what may depend on a copy
_JUMP = re.compile(r"\bbra(?:\.uni)?\s+(\$\w+);")
_GUARDED = re.compile(r"^\t(?:(?:ld|st)\.shared|ldmatrix|cp\.async\.wait)", re.MULTILINE)
_SHARED = re.compile(r"^\t(?:(?:ld|st|red|atom)\.shared|ldmatrix|cp\.async\.c)", re.MULTILINE)
_NUMBER = re.compile(r"(?<=, )(-?\d+);$")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A line of a PTX file and what stands there instead."""

    kind: str
    kernel: str
    line: int
    before: str
    after: str


def _drop(text: str) -> str | None:
    return "" if "@" not in text else None


def _later(text: str) -> str | None:
    """One copy group more may stay open."""
    return text.replace("wait_group 0", "wait_group 1") if "wait_group 0" in text else _drop(text)


def _flip(text: str) -> str | None:
    return text.replace(".trans", "") if ".trans" in text else text.replace(".x4.", ".x4.trans.")


def _bound(text: str) -> str | None:
    """A comparison with a number, off by one."""
    found = _NUMBER.search(text)
    return f"{text[: found.start()]}{int(found[1]) + 1};" if found else None


def _strict(text: str) -> str | None:
    pairs = {".lt.": ".le.", ".le.": ".lt.", ".gt.": ".ge.", ".ge.": ".gt."}
    return next((text.replace(a, b) for a, b in pairs.items() if a in text), None)


def _shift(text: str) -> str | None:
    """An address 16 bytes further."""
    plus = re.search(r"\[(%\w+)(?:\+(-?\d+))?\]", text)
    return text.replace(plus[0], f"[{plus[1]}+{int(plus[2] or 0) + 16}]") if plus else None


def _swap(text: str) -> str | None:
    """The two operands of a subtraction, the other way round."""
    found = re.fullmatch(r"(\S+\s+\S+), (\S+), (\S+);", text)
    return f"{found[1]}, {found[3]}, {found[2]};" if found and found[2] != found[3] else None


def _other(text: str) -> str | None:
    """The smaller of two numbers instead of the larger one, and the other way round."""
    return text.replace("max.", "min.", 1) if text.startswith("max.") else text.replace("min.", "max.", 1)


# What an instruction begins with -> the changes that are tried there.
CHANGES: tuple[tuple[str, str, Callable[[str], str | None]], ...] = (
    ("barrier dropped", "bar.sync", _drop),
    ("wait later", "cp.async.wait_group", _later),
    ("copy dropped", "cp.async.cg", _drop),
    ("transposition flipped", "ldmatrix", _flip),
    ("bound off by one", "setp.", _bound),
    ("bound strict", "setp.l", _strict),
    ("bound strict", "setp.g", _strict),
    ("store shifted", "st.", _shift),
    ("load shifted", "ld.shared", _shift),
    ("operands swapped", "sub.", _swap),
    ("max for min", "max.", _other),
    ("max for min", "min.", _other),
    ("product dropped", "mma.sync", _drop),
)


def choose(
    texts: Mapping[str, str], counts: Mapping[str, Sequence[int]], number: int, *, seed: int = 0
) -> list[Mutant]:
    """Mutants of executed instructions of attention kernels and combine, as many of each kind as there are.

    A wait is left alone if a wait for all copies is the next that touches memory: without the first nothing changes.

    Args:
        texts: a kernel's PTX, with empty lines before it so that line numbers are those of its file.
        counts: how often each instruction of a kernel ran.
    """
    picked: dict[str, list[Mutant]] = {}
    for kernel in sorted(counts):
        if kernels.kind(kernel) not in ("forward", "backward", "combine") or kernel not in texts:
            continue
        lines = executed_lines(texts[kernel], counts[kernel])
        for at, (line, text) in enumerate(lines):
            for kind, start, change in CHANGES:
                after = change(text) if text.startswith(start) else None
                if kind == "wait later" and after is not None:
                    behind = (following for _, following in lines[at + 1 :] if following.startswith(_TOUCH))
                    if next(behind, "").startswith("cp.async.wait_group 0"):
                        continue
                if after is not None and after != text:
                    picked.setdefault(kind, []).append(
                        Mutant(kind=kind, kernel=kernel, line=line, before=text, after=after)
                    )
    order = random.Random(seed)
    for mutants in picked.values():
        order.shuffle(mutants)
    found: list[Mutant] = []
    while len(found) < number and any(picked.values()):
        for kind in sorted(picked):
            if picked[kind] and len(found) < number:
                found.append(picked[kind].pop())
    return found


def _waited(before: Sequence[str], wait: str) -> bool:
    """Is the last thing done with copies before, on the one way there, the same wait?"""
    for line in reversed(before):
        if "cp.async" in line or line.startswith("$L"):
            return line.strip() == wait
    return False


def _is_column(line: int, lines: Sequence[str]) -> bool:
    """Is a window's right bound for a column compared here?

    It is the first of the comparisons of a column; those with the left edge and with sink tokens come behind its jump.
    """
    words = [text.split()[0].split(".")[0] if text.strip() else "" for text in lines[line - 1 : line + 4]]
    return words[:1] + words[2:] == ["setp", "setp", "setp", "or"] and words[1].startswith("@")


def _right_edge(line: int, lines: Sequence[str]) -> bool:
    """Is this a window's right bound for a column, in the last loop that multiplies?"""
    if not _is_column(line, lines):
        return False
    labels = {text[:-1]: at for at, text in enumerate(lines) if text.startswith("$L")}
    jumps = [(at, labels[found[1]]) for at, text in enumerate(lines) if (found := _JUMP.search(text))]
    loops = [(start, end) for end, start in jumps if start < end and any("mma.sync" in x for x in lines[start:end])]
    around = [(start, end) for start, end in loops if start < line <= end]
    start, end = min(around, key=lambda span: span[1] - span[0], default=(0, 0))
    # A loop inside that hides no column is that of the tiles which neither edge cuts.
    inside = [range(begun, ended) for begun, ended in loops if start < begun and ended < end]
    masks = any(_is_column(at, lines) for span in inside for at in span)
    return end > 0 and not masks and not any("mma.sync" in text for text in lines[end:])


def _low_row(mutant: Mutant, bound: str, text: str) -> bool:
    """Does each row of a causal kernel that this place in a thread holds see the key, in tiles behind the first?

    There a row's bound is a sum alone; in the first tile it is a minimum with the keys' end. The lane that has divided
    the row's number by the heads tells which place it is; a tile ends at most with the key that its last row sees.
    """
    summed = rf"shfl\.\S+\s+(%r\d+)\|%p\d+, %r\d+, (\d+), 7199, -1;\n\tadd\.s32 \t{bound}, %r\d+, \1;"
    found, shape = re.search(summed, text), kernels.tile(mutant.kernel)
    if not found or not shape or shape.kv8 or shape.fp8 or shape.qv:
        return False
    half, lower = divmod(int(found[2]), 2)
    first = 16 * shape.warps * half + 8 * lower
    columns = 6  # of other lanes before this one's
    return int(mutant.before.rstrip(";").split()[-1]) + 1 < first + 2 + shape.block_n - shape.block_m - columns


def _of_call(mutant: Mutant, lines: Sequence[str], flags: frozenset[str]) -> str:
    """Why no call of a kernel with these flags meets a bound; "" where that is not known."""
    compared = re.fullmatch(r"setp\.(\w+)\.s32\s+%p\d+, (%r\d+), (%?\w+);", mutant.before)
    how, left, right = compared.groups() if compared else ("", "", "")
    text, near = ("\n".join(lines[start : mutant.line + 30]) for start in (0, max(0, mutant.line - 16)))
    # The chunk is a divisor that a call may leave out: the kernel compares it with 1 by `lt` and by `eq`.
    divisor = re.search(rf"setp\.eq\.s32\s+%p\d+, {left}, 1;", text) if left else None
    if how == "lt" and right == "1" and "local" in flags and divisor:
        return "only a chunk of one key would pass it, and such a call has a window of one key as well"
    if how == "gt" and "causal" in flags and right.isdecimal() and _low_row(mutant, left, text):
        return "behind the first tile, each row of this place in a thread lies so low that it sees this key"
    if how == "ge":
        zeros = re.search(r"\tmov\.b64 \t(%rd\d+), 0;\n\tst\.\S+ \t\[%rd\d+\], \{\1, \1\};", near)
        if zeros and f"\tmul.lo.s32 \t{right}, " in text and "causal" in flags and not flags & {"varlen", "split"}:
            return "rows without a key fill whole tiles here: the last row of a sequence sees its last key"
        loads = "|".join(re.findall(r"\tld\.global\.u32 \t(%r\d+),", near))
        product = re.search(rf"\tmul\.lo\.s32 \t%r\d+, ({loads}), ({loads});", near)
        if loads and product and near.count(f", {left}, {right};") == 2:
            return "it is one of two bounds of factors of a product; the other factor is 0 there"
    return ""


def reason(mutant: Mutant, texts: Mapping[str, str]) -> str:
    """Why a change cannot matter to any call; "" where that is not known."""
    lines = texts[mutant.kernel].split("\n")
    before, after = "\n".join(lines[: mutant.line - 1]), lines[mutant.line :]
    variant = kernels.variant(mutant.kernel)
    flags = variant.flags if variant else frozenset[str]()
    if mutant.kind == "barrier dropped" and "SingleTileScheduler" in mutant.kernel and "\tbar." not in before:
        return "it guards the output of the block's tile before, and a block of this kernel has one tile"
    if mutant.kind == "barrier dropped":
        rest, since = "\n".join(after), before.rpartition("\tbar.sync \t0;")[2]
        if not _SHARED.search(rest) and "deterministic" not in flags:
            return "nothing behind it touches shared memory, and what is added to global memory is so atomically"
        if "SingleTileScheduler" in mutant.kernel and "\tbar.sync \t0;" in before and not _GUARDED.search(since):
            return "since the barrier before it, nothing was read or stored, and no copy waited for"
    if mutant.kind == "wait later" and _waited(before.split("\n"), mutant.before):
        return "the same wait stands before it, and no copies were committed between the two"
    if "local" in flags and _right_edge(mutant.line, lines):
        return "these are tiles that a window's left edge cuts: its right edge cuts none of them"
    if known := _of_call(mutant, lines, flags):
        return known
    compared = re.fullmatch(r"setp\.(\w+)\.[us]32\s+%p\d+, (%r\d+), (\d+);", mutant.before)
    if compared is None:
        return ""
    how, register, number = compared.groups()
    negative = rf"(?:neg\.s32\s+{register}, %r\d+|mul\.lo\.s32\s+{register}, %r\d+, -\d+);"
    if how == "gt" and int(number) > 0 and re.search(negative, before):
        return "only keys before sink tokens' end would pass it, and there are none: that end lies at 0 minus a place"
    thread = re.search(r"mov\.u32\s+(%r\d+), %tid\.x;", before)
    if how == "lt" and thread and thread[1] == register and f".maxntid {number}\n" in before:
        return f"a block has {number} threads: none has that number"
    quad = thread and re.search(rf"and\.b32\s+{register}, {thread[1]}, 3;", before)
    stored = next((line for line in after if line.strip().startswith("st.")), "")
    if how == "ne" and number == "0" and quad and "st.f32" in stored:
        return "another lane of four stores the LSE of their row, which all four hold"
    return ""


_STATEMENT = re.compile(r"^(?!\.|//|\$|[{})])\S.*;$")


def executed_lines(text: str, counts: Sequence[int]) -> list[tuple[int, str]]:
    """Lines that hold exactly one instruction which ran: number and text. Counts are in the order of the text."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    body = next(at for at, (_, line) in enumerate(lines) if line == "{")
    found, index = [], 0
    for number, line in lines[body + 1 :]:
        count = line.count(";") if not line.startswith((".reg", ".shared", "//", ".pragma", ".loc")) else 0
        count -= line.startswith("{.reg")
        if count == 1 and _STATEMENT.match(line) and index < len(counts) and counts[index]:
            found.append((number, line))
        index += max(0, count)
    return found


def texts_of(ptx: Sequence[Path]) -> dict[str, str]:
    """Each kernel's text, behind what a file declares, at the lines that it has in its file."""
    found = {}
    for path in ptx:
        lines = path.read_text(encoding="utf-8").splitlines()
        declared = [line for line in lines if line.startswith(".extern .shared")]
        begun = None
        for at, line in enumerate(lines):
            if line.startswith((".visible .entry", ".entry", ".weak .entry")):
                begun = at
            elif begun is not None and line.startswith("}"):
                name = lines[begun].split(".entry", 1)[1].strip().split("(")[0]
                head = ["\n".join(declared)] if len(declared) <= 1 else declared
                padding = [""] * (begun - len(head))
                found[name] = "\n".join((*head, *padding, *lines[begun : at + 1])) + "\n"
                begun = None
    return found


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Tries mutants, several processes side by side."""

    executable: Executable
    folder: Path
    jobs: int
    narrate: Narrator

    def run(
        self,
        mutants: Sequence[Mutant],
        texts: Mapping[str, str],
        results: Sequence[Mapping[str, Any]],
        cases: Sequence[Case],
    ) -> list[dict[str, Any]]:
        """Each mutant, with what caught it: a finding, a wrong number, or nothing ("")."""
        launched = {case: set(result["launched"]) for case, result in zip(cases, results, strict=True)}
        groups: dict[tuple[Path, ...], list[Mutant]] = {}
        for mutant in mutants:
            first = next(case for case, names in launched.items() if mutant.kernel in names)
            groups.setdefault(self.executable.needed(first), []).append(mutant)
        caught: dict[Mutant, str] = {}
        for sms in SMS:
            with ThreadPoolExecutor(max_workers=self.jobs) as pool:
                left = [
                    (ptx, [m for m in mine if not caught.get(m)][at :: self.jobs])
                    for ptx, mine in groups.items()
                    for at in range(self.jobs)
                ]
                work = [pool.submit(self._part, part, ptx, texts, launched, sms) for ptx, part in left if part]
                for done in work:
                    caught |= done.result()
            self.narrate.note(f"{sum(map(bool, caught.values()))} of {len(mutants)} mutants caught (up to {sms} SMs)")
        return [
            {**asdict(mutant), "caught": caught[mutant], "reason": "" if caught[mutant] else reason(mutant, texts)}
            for mutant in mutants
        ]

    def _part(
        self,
        part: Sequence[Mutant],
        ptx: tuple[Path, ...],
        texts: Mapping[str, str],
        launched: Mapping[Case, set[str]],
        sms: int,
    ) -> dict[Mutant, str]:
        """Try mutants in cases that need these PTX files."""
        ours = [case for case in launched if case.sms == sms and self.executable.needed(case) == ptx]
        wanted = []
        for mutant in part:
            mine = [case for case in ours if mutant.kernel in launched[case]]
            wanted.append({"mutant": asdict(mutant), "cases": [case.document for case in mine[:CASES]]})
        kept = {mutant.kernel: texts[mutant.kernel] for mutant in part}
        said = self.executable.run(FUNCTION, {"wanted": wanted, "texts": kept}, sms=sms, ptx=ptx).result
        return dict(zip(part, said, strict=True))


def check(caught: str) -> str:
    """Which check caught a mutant: the kind of a finding, a wrong result, or a launch that came to no end."""
    finding = re.match(r"(\w+) in \w+ memory: ", caught)
    return finding[1] if finding else "result" if " is off by " in caught else "no end" if caught else ""


def _by_check(tried: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(check(mutant["caught"]) for mutant in tried if mutant["caught"])
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def to_blocks(tried: Sequence[Mapping[str, Any]]) -> list[Block]:
    """For people: how many of each kind were caught and by which checks, and the survivors."""
    groups = {
        kind: [mutant for mutant in tried if mutant["kind"] == kind] for kind in sorted({m["kind"] for m in tried})
    }
    rows = [
        (kind, str(sum(bool(mutant["caught"]) for mutant in mine)), str(len(mine)), _by_check(mine))
        for kind, mine in groups.items()
    ]
    survivors = [mutant for mutant in tried if not mutant["caught"]]
    rows.append(("all", str(len(tried) - len(survivors)), str(len(tried)), ""))
    head = ("mutants", "caught", "of", "by")
    known = sum(bool(mutant["reason"]) for mutant in survivors)
    blocks: list[Block] = ["", Table(head=head, rows=rows, right=frozenset({1, 2}))]
    blocks.append(f"by all checks: {_by_check(tried)}; of {len(survivors)} survivors, {known} cannot matter")
    for mutant in survivors:
        variant = kernels.variant(mutant["kernel"]) or kernels.kind(mutant["kernel"])
        place = f"{variant}, line {mutant['line']}: {mutant['before']} -> {mutant['after'] or 'nothing'}"
        blocks.append(f"survived: {mutant['kind']}, {place}")
        blocks.append(f"    {mutant['reason'] or 'why it cannot matter is not known'}")
    return blocks
