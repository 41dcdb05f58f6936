"""Cases run in processes side by side, in chunks that are kept: what an interrupted run did is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.prove.gb10.cases import Case
from ci.prove.gb10.executable import Executable
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import CompileError
from flash_attn3_sm121.files import put_file

CHUNK = 72  # to start takes a process as long as 24 cases do; what it has done is lost when it is stopped
FUNCTION = "ci.prove.gb10.check:run"
Results = list[dict[str, Any]]
Counts = dict[str, list[int]]  # kernel -> how often each of its instructions ran


def chunks(cases: Sequence[Case], executable: Executable) -> list[list[Case]]:
    """Cases that can share a process: it poses as one number of SMs, and reads the PTX of one sort and head dim."""
    groups: dict[tuple[int, tuple[Path, ...]], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.sms, executable.needed(case)), []).append(case)
    return [mine[at : at + CHUNK] for mine in groups.values() for at in range(0, len(mine), CHUNK)]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Runs chunks. `folder` holds their results under names that hash what they depend on."""

    executable: Executable
    folder: Path
    jobs: int
    narrate: Narrator

    def run(self, cases: Sequence[Case]) -> tuple[Results, Counts]:
        """Every case's result in order, and how often instructions ran."""
        parts = [(self._file(chunk), chunk) for chunk in chunks(cases, self.executable)]
        missing = [part for part in parts if not part[0].is_file()]
        done = len(cases) - sum(len(chunk) for _, chunk in missing)
        if done:
            self.narrate.note(f"{done} of {len(cases)} cases are known from an earlier run")
        bar = self.narrate.progress("execute", len(cases) - done, unit="cases")
        with bar, ThreadPoolExecutor(max_workers=self.jobs, thread_name_prefix="prove") as pool:
            running = {pool.submit(self._chunk, *part): part for part in missing}
            seen: dict[Path, int] = {}
            try:
                while running:
                    ended, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                    for path, _ in running.values():
                        now = max(seen.get(path, 0), _finished(path.with_suffix(".log")))
                        bar.advance(now - seen.get(path, 0))
                        seen[path] = now
                    for future in ended:
                        path, chunk = running.pop(future)
                        future.result()
                        bar.advance(len(chunk) - seen[path])
            except BaseException:
                for future in running:
                    future.cancel()
                raise
        results: dict[str, dict[str, Any]] = {}
        counts: Counts = {}
        for path, _ in parts:
            document = json.loads(path.read_text(encoding="utf-8"))
            results |= {result["case"]: result for result in document["results"]}
            for kernel, mine in document["counts"].items():
                before = counts.get(kernel, [0] * len(mine))
                counts[kernel] = [a + b for a, b in zip(before, mine, strict=True)]
        return [results[case.name] for case in cases], counts

    def _file(self, chunk: Sequence[Case]) -> Path:
        text = json.dumps([case.document for case in chunk], sort_keys=True)
        text += self.executable.identity(chunk[0])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _chunk(self, path: Path, chunk: Sequence[Case]) -> None:
        """Run a chunk; a case in which the process dies is told as one that failed, and the others are run anew."""
        log, left = path.with_suffix(".log"), list(chunk)
        log.write_text("", encoding="utf-8")
        died: Results = []
        counts: Counts = {}
        while left:
            arguments = {"cases": [case.document for case in left], "log": str(log)}
            try:
                needed = self.executable.needed(chunk[0])
                counts = self.executable.run(FUNCTION, arguments, sms=chunk[0].sms, ptx=needed).result
                break
            except CompileError as error:
                results, open_case = _read(log)
                if open_case is None:
                    raise
                died.append({"case": open_case, "error": f"the process ended: {error}", **_NOTHING})
                seen = {result["case"] for result in (*results, *died)}
                left = [case for case in left if case.name not in seen]
        results = _read(log)[0] + died
        put_file(path, json.dumps({"results": results, "counts": counts}))
        log.unlink()


_NOTHING: dict[str, Any] = {
    "parts": {}, "errors": {}, "second": None, "findings": [], "launched": {}, "instructions": 0, "execution_s": 0.0,
    "seconds": 0.0,
}  # fmt: skip


def _read(log: Path) -> tuple[Results, str | None]:
    """The results of a log, and the case that was begun and not finished."""
    results: Results = []
    begun = None
    for line in log.read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        if "begun" in document:
            begun = document["begun"]
        else:
            results.append(document)
            begun = None
    return results, begun


def _finished(log: Path) -> int:
    """How many cases a chunk's log holds. The log goes when its chunk has ended."""
    try:
        return log.read_text(encoding="utf-8").count('{"case"')
    except FileNotFoundError:
        return 0
