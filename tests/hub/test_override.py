"""get_kernel overridden: in whatever module the library keeps it, for the chosen names, and for nothing else.

A small library of the right shape stands for `kernels` here; the real versions are in test_clients.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flash_attn3_sm121.errors import OverrideError
from flash_attn3_sm121.hub import override_cli
from flash_attn3_sm121.hub.override_cli import parse_line, pth_line
from flash_attn3_sm121.hub.patch import KernelCall, OverrideConfig
from flash_attn3_sm121.hub.run import HOOK_FOLDER, carried, environment
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import write_wheel

REPOSITORY = Path(__file__).parents[2]
REPO = "varunneal/flash-attention-3"
LIBRARY = '''
def get_kernel(repo_id, revision=None, version=None):
    """The real one."""
    return ("real", repo_id, revision, version)

def has_kernel(repo_id, revision=None, version=None):
    return False
'''
Run = Callable[..., subprocess.CompletedProcess[str]]


def write_library(folder: Path, module: str) -> Path:
    package = folder / "kernels"
    package.mkdir(parents=True)
    (package / f"{module}.py").write_text(LIBRARY)
    (package / "__init__.py").write_text(f"from kernels.{module} import get_kernel, has_kernel\n__version__ = '0'\n")
    (package / "late.py").write_text("from kernels import get_kernel\n")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run code, by default with the override on and a `kernels` library of 0.16's shape."""
    library = write_library(tmp_path / "library", "utils")

    def go(
        code: str, *options: str, path: Path | None = library, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        paths = [str(REPOSITORY), *([str(path)] if path else [])]
        return subprocess.run(
            [sys.executable, "-m", "flash_attn3_sm121", "run", *options, "--", sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return go


@pytest.mark.parametrize("module", ["utils", "load"], ids=["to-0.16", "from-0.17"])
def test_every_place_is_patched_before_it_is_bound(run: Run, tmp_path: Path, module: str) -> None:
    code = f"""
from kernels import get_kernel, has_kernel
import kernels, kernels.{module}, kernels.late
assert get_kernel is kernels.{module}.get_kernel is kernels.late.get_kernel is kernels.get_kernel
assert get_kernel.__doc__ == "The real one."
import inspect; assert list(inspect.signature(get_kernel).parameters) == ["repo_id", "revision", "version"]
assert get_kernel("other/repo", "r", version=3) == ("real", "other/repo", "r", 3)
assert get_kernel(repo_id="other/repo") == ("real", "other/repo", None, None)
assert has_kernel("{REPO}") is True and has_kernel("other/repo") is False
print(get_kernel("{REPO}").flash_attn_interface.__name__)
"""
    done = run(code, path=write_library(tmp_path / module, module))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "flash_attn3_sm121.api.interface\n"


def test_what_was_overridden_is_said_once(run: Run) -> None:
    code = f"from kernels import get_kernel; a = get_kernel('{REPO}'); assert a is get_kernel('{REPO}', version=1)"
    said = run(code).stderr
    assert said.count("is served by flash_attn3_sm121") == 1 and REPO in said
    assert run(code, "--quiet").stderr == ""


def test_bare_and_every_argument_of_every_version(run: Run) -> None:
    calls = ["", ", 'main', 1", ", 'main', 1, 'cuda', {'a': 'b'}, True, False"] + [
        f", {word}"
        for word in (
            "revision='fake-ops-return-probs'",
            "version=1",
            "version='>=1,<2'",
            "backend='cuda'",
            "user_agent='x'",
            "trust_remote_code=True",
            "check_arch=False",
        )
    ]
    lines = "\n".join(f"assert get_kernel('{REPO}'{call}) is get_kernel('{REPO}')" for call in calls)
    done = run(f"from kernels import get_kernel\n{lines}")
    assert done.returncode == 0, done.stderr
    wrong = run(f"from kernels import get_kernel\nget_kernel('{REPO}', no_such=1)")
    assert "unexpected arguments: ['no_such']" in wrong.stderr


def test_the_vllm_flavour_takes_sinks_and_refuses_what_it_lacks(run: Run) -> None:
    code = """
import inspect, torch
from kernels import get_kernel
k = get_kernel("kernels-community/vllm-flash-attn3")
for f in (k.flash_attn_func, k.flash_attn_varlen_func, k.flash_attn_with_kvcache):
    assert {"s_aux", "cp_world_size", "cp_rank", "cp_tot_seqused_k"} <= set(inspect.signature(f).parameters)
q = torch.randn(1, 4, 2, 16)
plain, lse = k.flash_attn_func(q, q, q, causal=True)
sunk, _ = k.flash_attn_func(q, q, q, causal=True, s_aux=torch.full((2,), 3.0))
assert lse.shape == (1, 2, 4) and not torch.equal(plain, sunk)
for wrong in ({"cp_world_size": 2}, {"cp_rank": 1}, {"cp_tot_seqused_k": torch.zeros(1)}):
    try:
        k.flash_attn_func(q, q, q, **wrong)
    except ValueError as error:
        assert "context parallelism" in str(error), error
    else:
        raise SystemExit(f"{wrong} was ignored")
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_more_repositories_and_only_those(run: Run) -> None:
    code = (
        "from kernels import get_kernel, has_kernel\n"
        f"print(has_kernel('me/mine'), has_kernel('{REPO}'), hasattr(get_kernel('me/mine'), 'flash_attn_func'))"
    )
    assert run(code, "--repo", "me/mine").stdout == "True True True\n"
    assert run(code, "--repo", "me/mine=fa3", "--only").stdout == "True False True\n"


def test_children_have_it_too_and_the_switch_turns_it_off(run: Run) -> None:
    code = (
        "import subprocess, sys, os\n"
        "c = \"from kernels import has_kernel; print(has_kernel('varunneal/flash-attention-3'))\"\n"
        "subprocess.run([sys.executable, '-c', c], check=True)\n"
        "subprocess.run([sys.executable, '-c', c], check=True, env={**os.environ, 'FLASH_ATTN3_OVERRIDE': '0'})"
    )
    assert run(code).stdout == "True\nFalse\n"


def test_an_existing_sitecustomize_still_runs(run: Run, tmp_path: Path) -> None:
    library = write_library(tmp_path / "more", "utils")
    (library / "sitecustomize.py").write_text("import builtins; builtins.MINE = 42\n")
    code = (
        "import sitecustomize; from kernels import has_kernel\n"
        f"print(MINE, has_kernel('{REPO}'), sitecustomize.__file__)"
    )
    assert run(code, path=library).stdout.startswith(f"42 True {library}")


def test_nothing_is_loaded_until_kernels_is(run: Run) -> None:
    done = run("import sys; print(sorted(n for n in sys.modules if 'flash' in n or n == 'torch'))")
    assert done.stdout == "['_flash_attn3_hook']\n"


def test_a_stand_in_where_kernels_is_missing(run: Run) -> None:
    code = f"""
import importlib.util
assert importlib.util.find_spec("kernels") is None, "a library that only looks must not be misled"
from kernels import get_kernel, has_kernel
assert get_kernel("{REPO}").flash_attn_func and not has_kernel("other/repo")
try:
    get_kernel("other/repo")
except ImportError as error:
    print(error)
"""
    done = run(code, path=None)
    assert done.returncode == 0, done.stderr
    assert "pip install kernels" in done.stdout and "the kernels package is not installed: a stand-in" in done.stderr


def test_in_code_and_back(run: Run) -> None:
    code = f"""
import flash_attn3_sm121.hub as hub
hub.override({{"me/mine": "fa3"}}, quiet=True)
import kernels
first = kernels.get_kernel
assert first("{REPO}") is first("me/mine")
hub.restore()
assert kernels.get_kernel("{REPO}")[0] == "real"
hub.override(quiet=True)
assert kernels.get_kernel("{REPO}").flash_attn_func
"""
    done = run(code)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_enable_status_disable_in_a_virtual_environment(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    write_library(site, "load")
    (site / "repository.pth").write_text(f"{REPOSITORY}\n")
    python = str(environment / "bin" / "python")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(*argv: str) -> str:
        done = subprocess.run([python, *argv], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ask = ("-c", f"import kernels; print(kernels.has_kernel('{REPO}'), kernels.has_kernel('me/mine'))")
    cli = ("-m", "flash_attn3_sm121", "override")
    assert call(*ask) == "False False\n"
    assert "me/mine  (vllm)" in call(*cli, "enable", "--repo", "me/mine=vllm")
    assert call(*ask) == "True True\n"
    assert call(*cli, "status").startswith(f"enabled for {environment}")
    assert '"enabled": true' in call(*cli, "status", "--json")
    assert call("-c", "import sys; print('flash_attn3_sm121.hub.patch' in sys.modules)") == "False\n"
    (site / "repository.pth").unlink()
    assert call(*ask) == "False False\n", "a package that is gone must not break or clutter anything"
    (site / "repository.pth").write_text(f"{REPOSITORY}\n")
    assert call(*cli, "disable").startswith("disabled") and call(*ask) == "False False\n"
    assert call(*cli, "disable").startswith("was not enabled")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "x.py", "-I"], ["python", "x.py", "-I"]),
        (["env", "A=1", "python", "x.py"], ["env", "A=1", "python", "x.py"]),
        (["env", "PYTHONPATH=/a", "python"], ["env", "PYTHONPATH=/hook:/a", "python"]),
        (["env", "PYTHONPATH=", "python"], ["env", "PYTHONPATH=/hook", "python"]),
        (["env", "-i", "A=1", "python"], ["env", "-i", "A=1", "PYTHONPATH=/hook", "FLASH_ATTN3_OVERRIDE={}", "python"]),
        (["env", "-i", "PYTHONPATH=/a", "python"],
         ["env", "-i", "PYTHONPATH=/hook:/a", "FLASH_ATTN3_OVERRIDE={}", "python"]),
        (["env", "-u", "PYTHONPATH", "python"], ["env", "-u", "PYTHONPATH", "PYTHONPATH=/hook", "python"]),
    ],
    ids=lambda words: " ".join(words),
)  # fmt: skip
def test_env_in_front_of_a_command_takes_nothing_away(argv: list[str], expected: list[str]) -> None:
    assert carried(argv, "{}", (Path("/hook"),)) == (expected, [])


@pytest.mark.parametrize("flags", [["-I"], ["-E"], ["-sS"], ["-u", "-I"]], ids=" ".join)
def test_a_python_that_ignores_its_environment_is_warned_of(flags: list[str]) -> None:
    for front in ([], ["env", "A=1"]):
        words, (warning,) = carried([*front, "/usr/bin/python3.11", *flags, "x.py"], "{}")
        assert words == [*front, "/usr/bin/python3.11", *flags, "x.py"] and flags[-1] in warning


def test_a_cleared_environment_keeps_the_override(run: Run) -> None:
    code = f"from kernels import has_kernel; print(has_kernel('{REPO}'))"
    done = subprocess.run(
        [sys.executable, "-m", "flash_attn3_sm121", "run", "--", "env", "-i", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr


def test_enabling_imports_nothing_into_a_starting_interpreter(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); exec(sys.argv[1]); print(sorted(set(sys.modules) - before))"
    argv = [sys.executable, "-c", code, pth_line(OverrideConfig())]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_pip_uninstall_takes_the_override_along(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(*argv: str) -> str:
        done = subprocess.run(argv, env=clean, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(*pip, "install", "--no-deps", "--no-index", str(write_wheel(tmp_path, platform=None)))
    for _ in range(2):
        call(python, "-m", "flash_attn3_sm121", "override", "enable")
    record = next(site.glob("flash_attn3_sm121-*.dist-info/RECORD"))
    assert record.read_text().count(override_cli.PTH_NAME) == 1
    call(python, "-m", "flash_attn3_sm121", "override", "disable")
    assert override_cli.PTH_NAME not in record.read_text() and not (site / override_cli.PTH_NAME).exists()
    call(python, "-m", "flash_attn3_sm121", "override", "enable")
    assert (site / override_cli.PTH_NAME).is_file()
    call(*pip, "uninstall", "-y", "flash_attn3_sm121")
    assert not list(site.glob("*flash_attn3*"))


def test_a_system_python_is_not_changed_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    override_cli.configure_override(parser)
    monkeypatch.setattr(override_cli, "site_packages", lambda: tmp_path)
    monkeypatch.setattr(override_cli, "is_virtual_environment", lambda: False)
    with pytest.raises(OverrideError, match="--system"):
        override_cli.do_override(parser.parse_args(["enable"]))
    assert override_cli.do_override(parser.parse_args(["enable", "--system"])) == 0
    assert override_cli.read(tmp_path) == OverrideConfig()


def test_an_environment_of_condas_is_one_and_its_base_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    for folder, is_one in (("bin", False), ("conda-meta", True), ("condabin", False)):
        (tmp_path / folder).mkdir()
        assert override_cli.is_virtual_environment() is is_one


def test_configuration_travels_whole() -> None:
    config = OverrideConfig(repos={"a/b": "vllm", 'it\'s/"x"': "fa3"}, hub="/a b'c", quiet=True, stand_in=True)
    assert OverrideConfig.from_json(config.to_json()) == config == parse_line(pth_line(config))
    with pytest.raises(OverrideError):
        OverrideConfig.from_json("{nonsense")


def test_the_environment_keeps_what_was_there() -> None:
    env = environment(OverrideConfig(), {"PYTHONPATH": f"/a:{HOOK_FOLDER}::/b", "X": "1"})
    assert env["PYTHONPATH"] == f"{HOOK_FOLDER}:/a:/b" and env["X"] == "1"
    assert environment(OverrideConfig(), {})["PYTHONPATH"] == str(HOOK_FOLDER)


def test_calls_and_names_parse() -> None:
    call = KernelCall.parse("get_kernel", ("a/b", "main"), {"version": 2, "check_arch": False})
    assert (call.repo, call.revision) == ("a/b", "main")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["run"], 2, "no command to run"),
        (["run", "--", "no-such-command-at-all"], 127, "command not found"),
        (["run", "--only", "--", "true"], 2, "would override nothing"),
        (["run", "--hub", "/no/such/hub", "--", "true"], 30, "no hub at"),
        (["run", "--", "sh", "-c", "exit 7"], 7, ""),
    ],
    ids=["nothing", "unknown", "only", "hub", "code"],
)
def test_exit_codes(argv: list[str], code: int, message: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "flash_attn3_sm121", *argv], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code and message in done.stderr


class TestFromAHub:
    """With --hub the asked revision of the hub is what runs, and only if it is what was published."""

    CODE = f"import torch; from kernels import get_kernel; k = get_kernel('{REPO}'); print(k.__file__)\n"
    SUM = "q = torch.randn(1, 4, 2, 16); print(k.flash_attn_interface.flash_attn_func(q, q, q).shape)"

    def test_it_serves(self, run: Run, hub: Hub, tmp_path: Path) -> None:
        done = run(self.CODE + self.SUM, "--hub", str(hub.layout.root))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(tmp_path / "fa3" / "override"))
        assert "torch.Size([1, 4, 2, 16])" in done.stdout and "of the hub" in done.stderr
        again = run(
            self.CODE
            + "import flash_attn3_sm121.hub as h; h.restore(); import kernels; print(kernels.get_kernel('x'))",
            "--hub",
            str(hub.layout.root),
        )
        assert "('real', 'x', None, None)" in again.stdout, again.stderr

    def test_a_tampered_checkout_is_refused(self, run: Run, hub: Hub, tmp_path: Path) -> None:
        run(self.CODE, "--hub", str(hub.layout.root))
        (target,) = (tmp_path / "fa3").glob("override/*/build/torch-cpu/payload/any/flash_attn3_sm121/arch.py")
        target.write_text("print('evil')")
        done = run(self.CODE, "--hub", str(hub.layout.root))
        assert done.returncode == 1 and "IntegrityError" in done.stderr and "evil" not in done.stdout

    def test_a_tampered_object_is_refused(self, run: Run, hub: Hub) -> None:
        for path in hub.layout.objects.glob("*/*"):
            if b"def flash_attn_func" in path.read_bytes():
                path.chmod(0o644)
                path.write_bytes(path.read_bytes() + b"\nprint('evil')\n")
        done = run(self.CODE, "--hub", str(hub.layout.root))
        assert done.returncode == 1 and "was tampered with" in done.stderr and "evil" not in done.stdout

    def test_a_signature_is_demanded(self, run: Run, hub: Hub, tmp_path: Path) -> None:
        pytest.importorskip("cryptography")
        from flash_attn3_sm121.hub.maintain import sign
        from flash_attn3_sm121.hub.sign import SigningKey

        key = SigningKey.generate(tmp_path / "key")
        env = {"FLASH_ATTN3_TRUSTED_KEYS": key.public}
        done = run(self.CODE, "--hub", str(hub.layout.root), env=env)
        assert done.returncode == 1 and "not signed" in done.stderr
        sign(hub, key)
        done = run(self.CODE + self.SUM, "--hub", str(hub.layout.root), env=env)
        assert done.returncode == 0, done.stderr
