"""Compiling with ninja, with scripts for compilers: what is stored, failures that are shown, nobody left running."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ninja
import pytest

from ci import ROOT
from ci.build import compile as compiling
from ci.build.family import Keyed
from ci.build.ninja import Ninja, measuring, unit_edge
from ci.build.unit import main as compile_unit
from ci.build.workdir import work_folder
from ci.plan.costs import Concurrency, Cost, concurrency
from ci.plan.ninja import Edge, ninja_text
from ci.settings import parse_meminfo
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import CompileError, DiskError, ToolchainError
from tests.fakes.units import KEY, NAME, builder, built, toolchain, unit

ONE = Concurrency(jobs=1, hungry=1, hungry_gb=99)


def group(leader: int) -> list[str]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(words[2]) == leader and words[0] != "Z":
            found.append(entry.parent.name)
    return found


def wait_for_the_end_of(leader: int) -> None:
    deadline = time.monotonic() + 20
    while living := group(leader):
        assert time.monotonic() < deadline, f"still there: {living}"
        time.sleep(0.02)


# Writes the object named after -o, as nvcc would.
WRITES = 'while [ "$1" != -o ]; do shift; done; echo object > "$2"'
PTXAS = """
echo "ptxas info    : Compiling entry function '_Zk' for 'sm_121'" >&2
echo "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads" >&2
echo "ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 1028 bytes smem" >&2
"""


def test_an_object_goes_into_the_cache_with_what_it_took(tmp_path: Path) -> None:
    made = builder(tmp_path, f"{PTXAS} echo x >> {tmp_path}/calls; {WRITES}")
    ((one,),) = built(made, sm8x=[Keyed(planned=unit(), key=KEY)]).values()
    path = made.store.object(one.key)
    assert path.read_text() == "object\n" and one.size == 7 and one.rss_gb > 0
    (usage,) = one.usage
    assert (usage.kernel, usage.image, usage.registers, usage.spill_stores) == ("_Zk", "sm_121", 255, 4)
    assert usage.static_smem == 1028 and usage.stack == 8 and usage.spill_loads == 12
    built(made, sm8x=[Keyed(planned=unit(), key=KEY)])
    assert (tmp_path / "calls").read_text() == "x\n", "what is in the cache is not compiled again"
    path.write_text("damaged")
    built(made, sm8x=[Keyed(planned=unit(), key=KEY)])
    assert path.read_text() == "object\n" and (tmp_path / "calls").read_text() == "x\nx\n"


def test_a_unit_that_another_build_made_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = builder(tmp_path, WRITES)
    built(made, sm8x=[Keyed(planned=unit(), key=KEY)])
    monkeypatch.chdir(tmp_path)
    words = ["--cache", str(tmp_path / "cache"), "--unit", NAME, "--key", KEY, "--", str(tmp_path / "gone")]
    assert compile_unit(words) == 0 and "made by another build" in capsys.readouterr().out


def test_units_of_one_name_in_two_families_are_kept_apart(tmp_path: Path) -> None:
    """Both compile at the same time: neither ends before the other has begun."""
    body = f"""
for word in "$@"; do case $word in -DFAMILY=*) family=${{word#-DFAMILY=}};; esac; done
touch {tmp_path}/begun.$family
while [ ! -e {tmp_path}/begun.a ] || [ ! -e {tmp_path}/begun.b ]; do sleep 0.01; done
while [ "$1" != -o ]; do shift; done; echo "$family" > "$2"
"""
    keyed = {name: [Keyed(planned=unit(NAME, f"-DFAMILY={name}"), key=name * 64)] for name in ("a", "b")}
    two = builder(tmp_path, body, jobs=2)
    made = built(two, **keyed)
    assert {name: two.store.object(reports[0].key).read_text() for name, reports in made.items()} == {
        "a": "a\n",
        "b": "b\n",
    }


def test_ninja_can_be_asked_about_a_build(tmp_path: Path) -> None:
    """After a build that was cut short: what is left and why, the commands, and then the rest of it."""
    body = f'case "$*" in *second*) [ -e {tmp_path}/mended ] || exit 1;; esac; {WRITES}'
    made = builder(tmp_path, body)
    units = [Keyed(planned=unit("first", cpu_s=20), key="a" * 64), Keyed(planned=unit("second"), key="b" * 64)]
    with pytest.raises(CompileError):
        built(made, sm8x=units)
    tool = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(tmp_path / "cache" / "work" / "run.0")]
    said = subprocess.run([*tool, "-n", "-d", "explain"], capture_output=True, text=True, check=True)
    assert f"{'b' * 64}/unit.o doesn't exist" in said.stdout + said.stderr and "a" * 64 not in said.stdout
    commands = json.loads(subprocess.run([*tool, "-t", "compdb"], capture_output=True, text=True, check=True).stdout)
    assert [Path(row["file"]).name for row in commands] == ["first.cu", "second.cu"]
    assert all("nvcc" in row["command"] and "-O3" in row["command"] for row in commands)
    (tmp_path / "mended").touch()
    subprocess.run(tool, check=True, capture_output=True)
    assert "no work to do" in subprocess.run(tool, check=True, capture_output=True, text=True).stdout
    assert made.store.find("b" * 64) is not None


def test_a_failed_compiler_is_shown_and_leaves_nothing(tmp_path: Path) -> None:
    body = WRITES.replace("echo object", "echo half") + "\necho 'tile.h(3): error: no such tile' >&2; exit 7"
    stream = io.StringIO()
    made = builder(tmp_path, body, stream=stream)
    with pytest.raises(CompileError) as caught:
        built(made, sm8x=[Keyed(planned=unit(), key=KEY)])
    text = str(caught.value)
    assert f"sm8x {NAME} failed" in text and f"$ {tmp_path}/nvcc" in text and "-O3" in text
    assert "exit code 7" in text and "error: no such tile" in text and "ci.build.unit" not in text
    log = next((tmp_path / "cache" / "logs").iterdir())
    assert "build stopped" not in stream.getvalue(), "a failure is told once, by the error"
    assert str(log) in text and "no such tile" in log.read_text() and made.store.find(KEY) is None
    left = [path.name for path in (tmp_path / "cache" / "work").rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".o", ".log"))]


def test_the_first_failure_stops_the_others(tmp_path: Path) -> None:
    body = f"""
case "$*" in
  *slow*) awk '{{print $5}}' /proc/self/stat > {tmp_path}/pid; sleep 600 & wait;;
  *) while [ ! -s {tmp_path}/pid ]; do sleep 0.01; done; echo broken >&2; exit 1;;
esac"""
    units = [Keyed(planned=unit("slow"), key="a" * 64), Keyed(planned=unit("fails"), key="b" * 64)]
    begun = time.monotonic()
    with pytest.raises(CompileError, match="broken"):
        built(builder(tmp_path, body, jobs=2), sm8x=units)
    assert time.monotonic() - begun < 300
    wait_for_the_end_of(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        pytest.param(
            "echo 'x.ii: No space left on device' >&2; exit 1",
            DiskError,
            "FA3_CACHE",
            id="disk",
        ),
        pytest.param("kill -9 $$", CompileError, "try JOBS=1", id="killed"),
    ],
)
def test_failures_with_a_known_cause(tmp_path: Path, body: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        built(builder(tmp_path, body), sm8x=[Keyed(planned=unit(), key=KEY)])


def test_a_missing_compiler(tmp_path: Path) -> None:
    made = builder(tmp_path, "")
    (tmp_path / "nvcc").unlink()
    with pytest.raises(ToolchainError, match=r"cannot run .*nvcc: No such file"):
        built(made, sm8x=[Keyed(planned=unit(), key=KEY)])


def test_a_build_file_that_ninja_refuses(tmp_path: Path) -> None:
    edge = Edge(name="x", folder=".", source="x", output="out", options=(), command=(), cost=Cost(cpu_s=1, rss_gb=1))
    with pytest.raises(CompileError, match=r"exit code 1(?s:.*)multiple rules generate out"):
        Ninja(root=tmp_path, narrate=Narrator(quiet=True)).build([edge, edge], measure=["true"], at_once=ONE)


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


def test_the_command_holds_no_path_but_of_the_tools() -> None:
    tools = toolchain(Path("/cuda/bin/nvcc"))
    words = compiling.command(unit(), toolchain=tools, launcher=None)
    assert [word for word in words if "/" in word and not word.startswith(("units/", "obj/", "keep/"))] == [
        "/cuda/bin/nvcc",
        "-Xcompiler=-ffile-prefix-map=/cuda/bin=cuda",
        f"-Xcudafe=--orig_src_path_name,units/{NAME}.cu",
    ]
    assert f"-frandom-seed={NAME}" in words
    assert words[-4:] == ["-c", f"units/{NAME}.cu", "-o", f"obj/{NAME}.o"]
    launched = compiling.command(unit(), toolchain=tools, launcher="sccache")
    assert launched[0] == "sccache" and "--keep" not in launched


def test_a_cache_whose_path_has_a_space_can_be_compiled_in() -> None:
    """nvcc puts the words for its host compiler into a shell's command line as they are."""
    words = compiling.command(unit(), toolchain=toolchain(Path("/my disk/bin/nvcc")), launcher=None)
    (word,) = [word.removeprefix("-Xcompiler=") for word in words if "prefix-map" in word]
    assert shlex.split(word) == ["-ffile-prefix-map=/my disk/bin=cuda"]


def test_ccache_only_in_a_mode_that_cannot_serve_stale_objects(tmp_path: Path) -> None:
    tools = toolchain(Path("/cuda/bin/nvcc"))
    around = {"PATH": "/bin", "CPATH": "/evil", "PYTHONPATH": "/clone"}
    env = compiling.environment(around, folder=tmp_path, launcher="ccache", fingerprint="test")
    assert env["CCACHE_DEPEND"] == "1" and env["CCACHE_COMPILERCHECK"] == "string:test"
    assert not {"CPATH", "PYTHONPATH"} & set(env) and env["TMPDIR"].startswith(str(tmp_path))
    words = compiling.command(unit(), toolchain=tools, launcher="ccache")
    assert words[words.index("-MD") : words.index("-MD") + 3] == ["-MD", "-MF", f"obj/{NAME}.d"]
    assert "TMPDIR" not in compiling.environment({}, folder=tmp_path, launcher="sccache", fingerprint="test"), (
        "a server outlives us"
    )
    assert "--fingerprint" in measuring(tmp_path, toolchain=tools, launcher="ccache")


def costs(*needs: float) -> list[Cost]:
    return [Cost(cpu_s=100, rss_gb=need) for need in needs]


@pytest.mark.parametrize(
    ("needs", "cores", "memory", "wanted", "expected"),
    [
        pytest.param([7, 7, 7, 7], 16, 24, None, (3, 3), id="memory"),
        pytest.param([7, 7, 7, 7], 2, 24, None, (2, 2), id="cores"),
        pytest.param([7, 7, 7, 7], 16, 4, None, (1, 1), id="one always runs"),
        pytest.param([7, 7, 1, 1, 1, 1], 2, 12, None, (2, 1), id="a hungry one beside a small one"),
        pytest.param([1, 1, 1, 1], 16, 24, 3, (3, 3), id="as many as asked for"),
        pytest.param([], 4, 24, None, (1, 1), id="nothing to do"),
    ],
)
def test_how_many_at_once(
    needs: list[float], cores: int, memory: float, wanted: int | None, expected: tuple[int, int]
) -> None:
    found = concurrency(costs(*needs), cores=cores, memory_gb=memory, wanted=wanted)
    assert (found.jobs, found.hungry) == expected


@pytest.mark.parametrize("memory", [3.0, 8.0, 12.0, 14.5, 24.0, 64.0, 120.0])
@pytest.mark.parametrize("cores", [1, 2, 4, 20])
def test_whatever_runs_together_fits_into_memory(cores: int, memory: float) -> None:
    """The worst choice that ninja can make: as many hungry units as their pool admits, the largest others beside."""
    needs = [0.4, 1.4, 2.8, 5.5, 6.2, 6.5, 6.5, 6.5, 6.9, 6.9]
    found = concurrency(costs(*needs), cores=cores, memory_gb=memory, wanted=None)
    hungry = sorted((need for need in needs if need > found.hungry_gb), reverse=True)[: found.hungry]
    others = sorted((need for need in needs if need <= found.hungry_gb), reverse=True)
    worst = sum(hungry) + sum(others[: found.jobs - len(hungry)])
    assert found.jobs <= cores and (worst <= memory - 1.0 or found.jobs == 1)


def test_hungry_units_share_a_pool_in_the_text() -> None:
    tools = toolchain(Path("/cuda/bin/nvcc"))
    edges = [
        unit_edge(
            replace(unit(name), cost=Cost(cpu_s=1, rss_gb=need)),
            folder="sm8x",
            output=f"{name}.o",
            options=("--key", KEY),
            toolchain=tools,
            launcher=None,
        )
        for name, need in (("bwd", 7.0), ("fwd", 5.5))
    ]
    at_once = concurrency([edge.cost for edge in edges], cores=2, memory_gb=13.6, wanted=None)
    text = ninja_text(edges, measure=["measure"], at_once=at_once)
    big, small = text.split("\nbuild ")[1:]
    assert "pool hungry\n  depth = 1\n" in text and "pool = hungry" in big and "pool" not in small


def test_the_log_counts_units_and_names_what_is_running(tmp_path: Path) -> None:
    stream = io.StringIO()
    made = builder(tmp_path, WRITES, stream=stream)
    built(made, sm8x=[Keyed(planned=unit(name), key=name * 64) for name in ("a", "b")])
    said = stream.getvalue()
    assert "2 units, 0 in the cache, 2 to compile" in said and f"{Path(ninja.BIN_DIR) / 'ninja'} -C" in said
    assert "[1/2] a: 0 CPU s" in said and "[2/2] b: 0 CPU s" in said


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_unit_is_seen_to_be_running(tmp_path: Path, terminal: bool) -> None:
    """The compiler ends once the line about it was written. Each look at the narrator's clock is a minute on."""

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            if "fwd (" in text:
                (tmp_path / "seen").touch()
            return super().write(text)

    stream, clock = Stream(), iter(range(0, 10**6, 60))
    tools = builder(tmp_path, f"while [ ! -e {tmp_path}/seen ]; do sleep 0.01; done; {WRITES}").inputs.toolchain
    (tmp_path / "work" / "sm8x").mkdir(parents=True)
    (tmp_path / "work" / "sm8x" / "units").mkdir()
    (tmp_path / "work" / "sm8x" / "units" / "fwd.cu").touch()
    narrate = Narrator(stream=stream, clock=lambda: float(next(clock)))
    output = str(tmp_path / "cost.json")
    edge = unit_edge(
        unit("fwd"), folder="sm8x", output=output, options=("--cost", output), toolchain=tools, launcher=None
    )
    measure = measuring(tmp_path / "cache", toolchain=tools, launcher=None)
    Ninja(root=tmp_path / "work", narrate=narrate, tick_seconds=0.01, line_seconds=0.0).build(
        [edge], measure=measure, at_once=ONE
    )
    assert "fwd (" in stream.getvalue() and "[1/1] fwd: 0 CPU s" in stream.getvalue()
    assert json.loads((tmp_path / "cost.json").read_text())["cpu_s"] >= 0


def test_folders_of_builds(tmp_path: Path) -> None:
    """Two builds at once have two; a folder is used again, without what a killed build left in it."""
    (tmp_path / "s").mkdir()
    with work_folder(tmp_path, sources=tmp_path / "s", torch=tmp_path / "s") as first:
        (first.family("sm8x").root / "keep" / "half-made").touch()
        with work_folder(tmp_path, sources=tmp_path / "s", torch=tmp_path / "s") as second:
            assert (first.root.name, second.root.name) == ("run.0", "run.1")
        (first.root / "build.ninja").touch()
    assert (first.root / "build.ninja").exists() and not (first.root / "sm8x" / "keep").exists()
    with work_folder(tmp_path, sources=tmp_path / "s", torch=tmp_path / "s") as again:
        assert again.root == first.root and not list(again.root.iterdir()), "the same name again, for compiler caches"


def test_reading_proc() -> None:
    assert parse_meminfo("MemTotal: 1 kB\nMemAvailable:   24000000 kB\n") == 24.0


BUILD = """
import signal
import sys
from pathlib import Path
from ci import __main__ as ci
from ci.build.family import Keyed
from tests.fakes.units import builder, built, unit

class Slow:
    @staticmethod
    def configure_slow(parser): pass
    @staticmethod
    def do_slow(args):
        here = Path(sys.argv[1])
        made = builder(here, f"echo $$ > {here}/pid; sleep 600 & wait")
        built(made, sm8x=[Keyed(planned=unit(), key="a" * 64)])
        return 0

# Also where these tests were started in the background, for which shells turn Ctrl-C off, or under nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.modules["slow"] = Slow
ci.COMMANDS["slow"] = ("slow", "")
sys.exit(ci.main(["slow"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_killed_build_takes_its_compilers_along(tmp_path: Path, number: int) -> None:
    build = subprocess.Popen([sys.executable, "-c", BUILD, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().strip()):
        assert build.poll() is None
        time.sleep(0.02)
    leader = os.getpgid(int(pid.read_text()))
    assert leader != os.getpgid(0) and len(group(leader)) >= 3, "our program, the compiler, its child"
    build.send_signal(number)
    assert "interrupted" in build.communicate()[1] and build.returncode == 128 + number
    wait_for_the_end_of(leader)
