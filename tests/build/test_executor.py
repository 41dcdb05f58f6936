"""Running compilers (scripts here): scheduling within memory, failures that are shown, nothing half-made left."""

from __future__ import annotations

import io
import itertools
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ci import ROOT
from ci.build import compile as compiling
from ci.build.children import Children
from ci.build.executor import Executor, Job, eta
from ci.build.family import Builder, Keyed
from ci.build.workdir import WorkDir, workdir
from ci.cache.objects import ObjectStore
from ci.console import Narrator
from ci.machine import parse_meminfo, parse_stat
from ci.plan.costs import Cost
from ci.plan.plan import PlannedUnit
from ci.plan.schedule import job_count, next_unit
from ci.plan.units import Unit
from ci.toolchain import Toolchain
from flash_attn3_sm121.errors import CompileError, DiskError, ToolchainError

KEY = "ab" + "0" * 62


def narrator() -> Narrator:
    return Narrator(stream=io.StringIO())


def plenty(_: frozenset[int]) -> tuple[float, float]:
    return 64.0, 0.0


def unit(name: str = "fwd_hd64_plain_bf16") -> PlannedUnit:
    made = Unit(name=name, kind="fwd", head_dim=64, kernels=4, text="// nothing\n", contents=())
    return PlannedUnit(unit=made, flags=("-O3",), cost=Cost(cpu_s=10, rss_gb=1), shard=1)


def script(folder: Path, body: str) -> Path:
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def toolchain(nvcc: Path) -> Toolchain:
    return Toolchain(
        host="x86_64",
        target="x86_64",
        root=nvcc.parent,
        nvcc=nvcc,
        ptxas=nvcc,
        cuobjdump=nvcc,
        nvdisasm=nvcc,
        include_dirs=(),
        cudart_dir=nvcc.parent,
        cxx="g++",
        cxx_version="12",
        version=(13, 0),
        origin="test",
        fingerprint="test",
    )


def compiler(tmp_path: Path, work: WorkDir, body: str) -> compiling.UnitCompiler:
    return compiling.UnitCompiler(
        toolchain=toolchain(script(tmp_path, body)),
        work=work,
        store=ObjectStore(cache=tmp_path / "cache"),
        children=Children(),
        narrate=narrator(),
        launcher=None,
        env={"PATH": os.environ["PATH"]},
    )


# Writes the object named after -o, as nvcc would.
WRITES = 'while [ "$1" != -o ]; do shift; done; echo object > "$2"'
PTXAS = """
echo "ptxas info    : Compiling entry function '_Zk' for 'sm_121'" >&2
echo "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads" >&2
echo "ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 1028 bytes smem" >&2
"""


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    (tmp_path / "src").mkdir()
    root = tmp_path / "work"
    for name in ("units", "keep", "obj", "stubs", "tmp"):
        (root / name).mkdir(parents=True)
    return WorkDir(root=root)


def test_a_unit_goes_into_the_store(tmp_path: Path, work: WorkDir) -> None:
    made = compiler(tmp_path, work, PTXAS + WRITES)
    assert "fwd_hd64_plain_bf16" in made.compile(unit(), KEY)
    found = made.store.find(KEY)
    assert found is not None
    path, report = found
    assert path.read_text() == "object\n" and report.size == 7
    (usage,) = report.usage
    assert (usage.kernel, usage.image, usage.registers, usage.spill_stores) == ("_Zk", "sm_121", 255, 4)
    assert usage.static_smem == 1028 and usage.stack == 8 and usage.spill_loads == 12
    assert not work.keep(unit().unit).exists() and not work.object(unit().unit).exists()
    assert "made by another build" in made.compile(unit(), KEY)


def test_units_of_one_name_in_two_families_are_kept_apart(tmp_path: Path) -> None:
    """Both compile at the same time: neither ends before the other has begun."""
    body = f"""
for word in "$@"; do case $word in -DFAMILY=*) family=${{word#-DFAMILY=}};; esac; done
touch {tmp_path}/begun.$family
while [ ! -e {tmp_path}/begun.a ] || [ ! -e {tmp_path}/begun.b ]; do sleep 0.01; done
while [ "$1" != -o ]; do shift; done; echo "$family" > "$2"
"""
    (tmp_path / "s").mkdir()
    edited = SimpleNamespace(folder=tmp_path / "s")
    inputs = SimpleNamespace(toolchain=toolchain(script(tmp_path, body)), edited=edited, torch_headers=tmp_path / "s")
    builder = Builder(inputs=inputs, cache=tmp_path / "cache", narrate=narrator(), jobs=2)  # type: ignore[arg-type]
    keyed = {
        family: Keyed(planned=replace(unit(), flags=(f"-DFAMILY={family}",)), key=family * 64) for family in ("a", "b")
    }
    with builder.workdir() as first, builder.workdir() as second:
        builder.compile([(first, [keyed["a"]]), (second, [keyed["b"]])], children=Children())
    for family, one in keyed.items():
        found = builder.store.find(one.key)
        assert found is not None and found[0].read_text() == f"{family}\n"


def test_a_failed_compiler_is_shown_and_leaves_nothing(tmp_path: Path, work: WorkDir) -> None:
    body = WRITES.replace("echo object", "echo half") + "\necho 'tile.h(3): error: no such tile' >&2; exit 7"
    made = compiler(tmp_path, work, body)
    with pytest.raises(CompileError) as caught:
        made.compile(unit(), KEY)
    text = str(caught.value)
    assert "nvcc" in text and "-O3" in text and "exit code 7" in text and "error: no such tile" in text
    log = next((tmp_path / "cache" / "logs").iterdir())
    assert str(log) in text and "no such tile" in log.read_text()
    assert made.store.find(KEY) is None
    assert not work.object(unit().unit).exists() and not work.keep(unit().unit).exists()
    assert not list((tmp_path / "cache" / "tmp").glob("*")) if (tmp_path / "cache" / "tmp").exists() else True


def test_disk_full_in_the_compiler(tmp_path: Path, work: WorkDir) -> None:
    made = compiler(tmp_path, work, "echo 'fatal error: error writing to x.ii: No space left on device' >&2; exit 1")
    with pytest.raises(DiskError, match="no space left on the disk") as caught:
        made.compile(unit(), KEY)
    assert "FA3_CACHE" in str(caught.value) and "error writing to x.ii" in str(caught.value)


def test_disk_full_in_our_own_writes(tmp_path: Path) -> None:
    """/dev/full says ENOSPC to every write, as a full disk does."""
    with pytest.raises(DiskError, match=str(tmp_path)), compiling.disk_errors(tmp_path):
        Path("/dev/full").write_text("x", encoding="ascii")
    with pytest.raises(FileNotFoundError), compiling.disk_errors(tmp_path):
        (tmp_path / "none").read_text()


def test_too_little_room_is_said_before_anything_is_compiled(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"found 0\.50 GB free, expected at least 2 GB"):
        compiling.check_space(tmp_path, free_gb=0.5)
    compiling.check_space(tmp_path, free_gb=3.0)


def test_a_killed_compiler_hints_at_memory(tmp_path: Path, work: WorkDir) -> None:
    with pytest.raises(CompileError, match="JOBS=1"):
        compiler(tmp_path, work, "kill -9 $$").compile(unit(), KEY)


def test_a_missing_compiler(tmp_path: Path, work: WorkDir) -> None:
    with pytest.raises(ToolchainError, match=r"cannot run .*nowhere"):
        Children().run([str(tmp_path / "nowhere")], cwd=work.root, env={}, log=work.root / "log")


def test_the_command_holds_no_path_but_of_the_tools(tmp_path: Path, work: WorkDir) -> None:
    tools = toolchain(Path("/cuda/bin/nvcc"))
    words = compiling.command(unit(), toolchain=tools, work=work, launcher=None)
    assert not [word for word in words if str(tmp_path) in word]
    assert "-frandom-seed=fwd_hd64_plain_bf16" in words
    assert "-Xcudafe=--orig_src_path_name,units/fwd_hd64_plain_bf16.cu" in words
    assert words[-4:] == ["-c", "units/fwd_hd64_plain_bf16.cu", "-o", "obj/fwd_hd64_plain_bf16.o"]
    launched = compiling.command(unit(), toolchain=tools, work=work, launcher="sccache")
    assert launched[0] == "sccache" and "--keep" not in launched


def test_ccache_only_in_a_mode_that_cannot_serve_stale_objects(work: WorkDir) -> None:
    tools = toolchain(Path("/cuda/bin/nvcc"))
    env = compiling.environment({"PATH": "/bin", "CPATH": "/evil"}, toolchain=tools, work=work, launcher="ccache")
    assert env["CCACHE_DEPEND"] == "1" and env["CCACHE_COMPILERCHECK"] == "string:test"
    assert "CPATH" not in env and env["TMPDIR"].startswith(str(work.root))
    words = compiling.command(unit(), toolchain=tools, work=work, launcher="ccache")
    assert words[words.index("-MD") : words.index("-MD") + 3] == ["-MD", "-MF", "obj/fwd_hd64_plain_bf16.d"]
    assert "TMPDIR" not in compiling.environment({}, toolchain=tools, work=work, launcher="sccache"), (
        "a server outlives us"
    )


def test_memory_decides_what_runs_together() -> None:
    assert next_unit([7.0, 1.0], running=[], limit=2, free_gb=0.5) == 0, "one unit always runs"
    assert next_unit([7.0, 1.0], running=[7.0], limit=2, free_gb=5.0) == 1, "the small one fits"
    assert next_unit([7.0, 6.0], running=[7.0], limit=2, free_gb=5.0) is None
    assert next_unit([1.0], running=[1.0, 1.0], limit=2, free_gb=50.0) is None
    assert next_unit([], running=[], limit=2, free_gb=50.0) is None


@pytest.mark.parametrize(
    ("needs", "cores", "memory", "wanted", "expected"),
    [
        ([7, 7, 7, 7], 16, 24, None, 3),
        ([7, 7, 7, 7], 2, 24, None, 2),
        ([7, 7, 7, 7], 16, 4, None, 1),
        ([1, 1, 1, 1], 16, 24, 3, 3),
        ([], 4, 24, None, 1),
    ],
)
def test_job_count(needs: list[float], cores: int, memory: float, wanted: int | None, expected: int) -> None:
    assert job_count(needs, cores=cores, memory_gb=memory, wanted=wanted) == expected


def test_executor_never_exceeds_memory_or_cores() -> None:
    lock, running, peak = threading.Lock(), [0.0], [0.0, 0]

    def action(need: float) -> str:
        with lock:
            running.append(need)
            peak[0], peak[1] = max(peak[0], sum(running)), max(peak[1], len(running) - 1)
        time.sleep(0.01)
        with lock:
            running.remove(need)
        return "done"

    jobs = [
        Job(name=str(i), cpu_s=i, need_gb=need, action=lambda need=need: action(need))  # type: ignore[misc]
        for i, need in enumerate([7.0, 7.0, 6.0, 5.0, 1.0, 1.0, 1.0, 2.0])
    ]
    Executor(limit=3, memory=lambda _: (15.0, 0.0), narrate=narrator(), poll_seconds=0.01).run(jobs)
    assert peak[0] <= 14.0 and peak[1] <= 3


def test_the_first_failure_stops_the_others(tmp_path: Path) -> None:
    children = Children()
    ended: list[int] = []

    def slow() -> str:
        log = tmp_path / "log"
        ended.append(children.run(["sleep", "600"], cwd=tmp_path, env={"PATH": "/bin:/usr/bin"}, log=log).code)
        return "slept"

    def fails() -> str:
        while not children.sessions():
            time.sleep(0.01)
        raise CompileError("broken")

    jobs = [
        Job(name="slow", cpu_s=2, need_gb=1, action=slow),
        Job(name="fails", cpu_s=1, need_gb=1, action=fails),
    ]
    with pytest.raises(CompileError, match="broken"):
        Executor(limit=2, memory=plenty, narrate=narrator(), children=children).run(jobs)
    assert ended == [-9] and not children.sessions()


def test_progress_tells_counts_and_time_left() -> None:
    stream = io.StringIO()
    jobs = [Job(name=str(i), cpu_s=1, need_gb=1, action=lambda: "unit: 1 CPU s") for i in range(3)]
    Executor(limit=1, memory=plenty, narrate=Narrator(stream=stream)).run(jobs)
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["[1/3]", "[2/3]", "[3/3]", "compile:"]
    assert "left" in lines[0] and "left" not in lines[2]
    assert eta(10, 100, elapsed=5) == "45 s"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_unit_is_seen_to_be_running(terminal: bool) -> None:
    """Each look at the clock is five minutes on; the unit ends once the line about it was written."""
    seen = threading.Event()

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            if "fwd (" in text:
                seen.set()
            return super().write(text)

    stream, clock = Stream(), itertools.count(0.0, 300.0)

    def action() -> str:
        assert seen.wait(60), stream.getvalue()
        return "fwd: 1 CPU s"

    narrate = Narrator(stream=stream, clock=lambda: next(clock))
    job = Job(name="fwd", cpu_s=1, need_gb=1, action=action)
    Executor(limit=1, memory=plenty, narrate=narrate, tick_seconds=0.01).run([job])
    said = stream.getvalue()
    assert "fwd (" in said and ("\x1b[" in said) is terminal
    assert "[1/1] fwd: 1 CPU s\n" in said and "compile: 1 CPU s in " in said


def test_a_killed_runs_folder_is_swept(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with workdir(tmp_path, sources=tmp_path / "s", torch=tmp_path / "s") as first:
        with workdir(tmp_path, sources=tmp_path / "s", torch=tmp_path / "s") as second:
            assert first.root.exists() and second.root != first.root, "a running build's folder is left alone"
        assert second.root.name == "run.1" and not second.root.exists()
    litter = tmp_path / "work" / "run.0" / "keep" / "half-made"
    litter.parent.mkdir(parents=True)
    litter.touch()
    with workdir(tmp_path, sources=tmp_path / "s", torch=tmp_path / "s") as again:
        assert again.root == first.root and not litter.exists(), "the same name again, for compiler caches"
    assert not [path for path in (tmp_path / "work").iterdir() if path.is_dir()]


def test_reading_proc() -> None:
    assert parse_meminfo("MemTotal: 1 kB\nMemAvailable:   24000000 kB\n") == 24.0
    fields = " ".join(str(i) for i in range(3, 53))
    assert parse_stat(f"42 (a (b) c) {fields}") == (6, 24)


BUILD = """
import signal
import sys
from pathlib import Path
from ci import __main__ as ci
from ci.build.children import Children
from ci.build.executor import Executor, Job
from ci.console import Narrator

class Slow:
    @staticmethod
    def configure(parser): pass
    @staticmethod
    def run(args):
        children, here = Children(), Path(sys.argv[1])
        def action():
            argv = ["sh", "-c", "echo $$ > pid; sleep 600 & wait"]
            children.run(argv, cwd=here, env={"PATH": "/bin:/usr/bin"}, log=here / "log")
            return ""
        job = Job(name="slow", cpu_s=1, need_gb=1, action=action)
        Executor(limit=1, memory=lambda _: (9.0, 0.0), narrate=Narrator(quiet=True), children=children).run([job])
        return 0

# Also where these tests were started in the background, for which shells turn Ctrl-C off.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules["slow"] = Slow
ci.COMMANDS["slow"] = ("slow", "")
sys.exit(ci.main(["slow"]))
"""


def alive(session: int) -> list[str]:
    """Processes of a session, but for those that are dead and only wait to be counted."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(words[3]) == session and words[0] != "Z":
            found.append(entry.parent.name)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_killed_build_takes_its_compilers_along(tmp_path: Path, number: int) -> None:
    build = subprocess.Popen([sys.executable, "-c", BUILD, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().strip()):
        assert build.poll() is None
        time.sleep(0.02)
    build.send_signal(number)
    assert "interrupted" in build.communicate()[1] and build.returncode == 130
    deadline = time.monotonic() + 20
    while living := alive(int(pid.read_text())):
        assert time.monotonic() < deadline, f"still there: {living}"
        time.sleep(0.02)
