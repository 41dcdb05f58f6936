"""Does it notice? One instruction of a kernel is changed at a time: do the cases that launch it come out wrong?"""

from __future__ import annotations

import random
import re
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


def _least(text: str) -> str | None:
    return text.replace("max.", "min.", 1)


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
    ("max for min", "max.ftz", _least),
    ("product dropped", "mma.sync", _drop),
)


def choose(
    texts: Mapping[str, str], counts: Mapping[str, Sequence[int]], number: int, *, seed: int = 0
) -> list[Mutant]:
    """Mutants of executed instructions of attention kernels and combine, as many of each kind as there are.

    A wait is left alone if the next instruction waits for all copies: without the first nothing changes.

    Args:
        texts: a kernel's PTX, with empty lines before it so that line numbers are those of its file.
        counts: how often each instruction of a kernel ran.
    """
    picked: dict[str, list[Mutant]] = {}
    for kernel in sorted(counts):
        if kernels.kind(kernel) not in ("forward", "backward", "combine") or kernel not in texts:
            continue
        lines = executed_lines(texts[kernel], counts[kernel])
        for (line, text), (_, following) in zip(lines, (*lines[1:], (0, "")), strict=True):
            for kind, start, change in CHANGES:
                after = change(text) if text.startswith(start) else None
                if kind == "wait later" and following.startswith("cp.async.wait_group 0"):
                    continue  # that one waits for all, whatever is changed here
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


def reason(mutant: Mutant, texts: Mapping[str, str]) -> str:
    """Why a change cannot matter to any call; "" where that is not known."""
    lines = texts[mutant.kernel].split("\n")
    before, after = "\n".join(lines[: mutant.line - 1]), lines[mutant.line :]
    if mutant.kind == "barrier dropped" and "SingleTileScheduler" in mutant.kernel and "\tbar." not in before:
        return "it guards the output of the block's tile before, and a block of this kernel has one tile"
    if mutant.kind == "wait later" and _waited(before.split("\n"), mutant.before):
        return "the same wait stands before it, and no copies were committed between the two"
    compared = re.fullmatch(r"setp\.(\w+)\.[us]32\s+%p\d+, (%r\d+), (\d+);", mutant.before)
    if compared is None:
        return ""
    how, register, number = compared.groups()
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
        caught: dict[Mutant, str] = {}
        for sms in SMS:
            left = [mutant for mutant in mutants if not caught.get(mutant)]
            parts = [left[at :: self.jobs] for at in range(self.jobs)]
            with ThreadPoolExecutor(max_workers=self.jobs) as pool:
                work = [pool.submit(self._part, part, texts, launched, sms) for part in parts if part]
                for done in work:
                    caught |= done.result()
            self.narrate.note(f"{sum(map(bool, caught.values()))} of {len(mutants)} mutants caught (up to {sms} SMs)")
        return [
            {**asdict(mutant), "caught": caught[mutant], "reason": "" if caught[mutant] else reason(mutant, texts)}
            for mutant in mutants
        ]

    def _part(
        self, part: Sequence[Mutant], texts: Mapping[str, str], launched: Mapping[Case, set[str]], sms: int
    ) -> dict[Mutant, str]:
        wanted = []
        for mutant in part:
            mine = [case for case, names in launched.items() if mutant.kernel in names and case.sms == sms]
            wanted.append({"mutant": asdict(mutant), "cases": [case.document for case in mine[:CASES]]})
        kept = {mutant.kernel: texts[mutant.kernel] for mutant in part}
        said = self.executable.run(FUNCTION, {"wanted": wanted, "texts": kept}, sms=sms).result
        return dict(zip(part, said, strict=True))


def to_blocks(tried: Sequence[Mapping[str, Any]]) -> list[Block]:
    """For people: how many of each kind were caught, and the survivors."""
    groups = {
        kind: [mutant for mutant in tried if mutant["kind"] == kind] for kind in sorted({m["kind"] for m in tried})
    }
    rows = [
        (kind, str(sum(bool(mutant["caught"]) for mutant in mine)), str(len(mine)))
        for kind, mine in (groups | {"all": list(tried)}).items()
    ]
    blocks: list[Block] = ["", Table(head=("mutants", "caught", "of"), rows=rows, right=frozenset({1, 2}))]
    for mutant in tried:
        if not mutant["caught"]:
            variant = kernels.variant(mutant["kernel"]) or kernels.kind(mutant["kernel"])
            place = f"{variant}, line {mutant['line']}: {mutant['before']} -> {mutant['after'] or 'nothing'}"
            blocks.append(f"survived: {mutant['kind']}, {place}")
            blocks.append(f"    {mutant['reason'] or 'why it cannot matter is not known'}")
    return blocks
