"""The hub's command line: what a person sees, what a program reads, and the exit codes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flash_attn3_sm121.cli import main
from flash_attn3_sm121.hub.commands.inspection import repo_table, wheel_table
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import write_wheel

REPO = "varunneal/flash-attention-3"
Cli = Callable[..., str]


@pytest.fixture
def cli(hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `flash-attn3 hub ...` on a hub; gives stdout, and checks the exit code."""
    monkeypatch.setenv("FLASH_ATTN3_HUB", str(hub.layout.root))

    def run(*argv: str, code: int = 0) -> str:
        capsys.readouterr()
        found = main(["hub", *argv])
        output = capsys.readouterr()
        assert found == code, output.err
        return output.out if code == 0 else output.err

    return run


def test_publishing_ends_with_names_sizes_hashes_and_the_next_command(
    cli: Cli, wheels: Mapping[str, Path], newer_wheel: Path, hub: Hub
) -> None:
    text = cli("publish", str(newer_wheel), "--repo", "my-lab/attention")
    entry = hub.index().wheels[newer_wheel.name]
    assert text.startswith(f"published: generation 2 of {hub.layout.root}")
    assert newer_wheel.name in text and entry.sha256 in text and "verify: pass" in text
    assert "my-lab/attention" in text and "next: flash-attn3 hub serve" in text
    assert cli("publish", str(newer_wheel)).startswith("nothing new: generation 2")
    again = json.loads(cli("publish", str(wheels["pure"]), "--json"))
    assert again["changed"] is True and set(again["repos"]) == {*hub.index().repos}, "my-lab/attention gets it too"


def test_the_first_publish_makes_the_hub(
    tmp_path: Path, wheels: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hub", "list"]) == 30
    assert "no hub at" in capsys.readouterr().err
    assert main(["hub", "publish", str(wheels["pure"])]) == 0
    assert Hub.open(tmp_path / "data" / "flash-attn3-sm121" / "hub").index().generation == 1


def test_a_bad_wheel_has_its_own_exit_code_and_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    text = cli("publish", str(write_wheel(tmp_path, verdict="fail")), code=31)
    assert "is not verified" in text and "--allow-unverified" in text
    cli("publish", str(write_wheel(tmp_path, verdict="fail")), "--allow-unverified")
    assert "unverified" in cli("list")
    assert "there is no file wheels/*.whl\n  -> `make wheel`" in cli("publish", "wheels/*.whl", code=30)


def test_list_and_show_are_tables_and_json(cli: Cli, hub: Hub) -> None:
    text = cli("list")
    assert "sm_121" in text and REPO in text and "main, v1, 3.0.0" in text
    rich = pytest.importorskip("rich.console")
    screen = rich.Console(width=80, file=io.StringIO())
    for made in (wheel_table(hub.index()), repo_table(hub.index())):
        screen.print(made.drawn(80))
    drawn = screen.file.getvalue()
    assert max(map(len, drawn.splitlines())) <= 80 and "\u2026" not in drawn, "it fits, and nothing is cut"
    assert all(name in drawn for name in hub.index().repos) and drawn.count("sm_121") == 2, "the machine code has room"
    assert set(json.loads(cli("list", "--json"))["repos"]) == set(hub.index().repos)
    shown = cli("show", REPO)
    assert "linux_aarch64: sm_121, from flash_attn3_sm121-3.0.0.post1+g3effce8" in shown
    assert "build/torch-cpu" in shown
    files = cli("show", REPO, "--files")
    assert (
        sum("payload/linux_aarch64/flash_attn3_sm121/lib/flash_attn3_sm8x.so" in row for row in files.splitlines()) == 2
    )
    wheel = next(iter(hub.index().wheels))
    assert hub.index().wheels[wheel].sha256 in cli("show", wheel)
    assert json.loads(cli("show", wheel, "--json"))["filename"] == wheel
    assert "no repository 'no/such'" in cli("show", "no/such", code=30)
    assert "no wheel 'x.whl' in this hub" in cli("show", "x.whl", code=30)
    assert "nothing to go back to" in cli("rollback", code=30)
    assert "has no revision 'v9'" in cli("show", f"{REPO}@v9", code=30)


@pytest.mark.parametrize(
    ("local", "images"),
    [
        ("g3effce8.121.common", ["sm_121"]),
        ("g3effce8.90.100.120.121.nanochat", ["sm_100", "sm_120", "sm_121", "sm_90a"]),
    ],
)
def test_a_long_version_stays_whole_at_80_columns(hub: Hub, local: str, images: Sequence[str]) -> None:
    rich = pytest.importorskip("rich.console")
    index = hub.index()
    for number, (name, entry) in enumerate(index.wheels.items()):
        if entry.families:
            changes = {"version": f"3.0.0.post1+{local}", "images": tuple(images), "size": 999 << 20}
            index = index.with_wheel(name, replace(entry, verify="unverified" if number else "pass", **changes))
    screen = rich.Console(width=80, file=io.StringIO())
    screen.print(wheel_table(index).drawn(80))
    lines = screen.file.getvalue().splitlines()
    assert len(lines) == 1 + len(index.wheels) and max(map(len, lines)) <= 80
    assert sum(line.rstrip().endswith(f"  3.0.0.post1+{local}") for line in lines) == 2


def test_check_says_ok_or_damaged(cli: Cli, hub: Hub) -> None:
    assert cli("check").startswith("ok: generation 1")
    wheel = next(iter(hub.index().wheels.values()))
    path = hub.layout.object(wheel.sha256)
    path.chmod(0o644)
    path.write_bytes(b"x")
    assert "expected " + wheel.sha256 in cli("check", code=31)


def test_env_prints_one_line_for_the_shell(cli: Cli, tmp_path: Path) -> None:
    line = cli("env", REPO, "--dir", str(tmp_path / "out"))
    assert line.startswith(f"export LOCAL_KERNELS={REPO}={tmp_path}/out/") and line.count("\n") == 1
    folder = Path(line.strip().rpartition("=")[2])
    assert (folder / "build/torch-cuda/metadata.json").is_file()
    assert "use --dir" in cli("env", "--dir", str(tmp_path / "a:b"), code=30)


def test_env_keeps_other_entries(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KERNELS", f"other/thing=/x:{REPO}=/old")
    value = json.loads(cli("env", REPO, "--json"))["LOCAL_KERNELS"]
    assert value.startswith("other/thing=/x:") and "/old" not in value and value.count("=") == 2


def test_seed_fills_a_cache_of_the_right_layout(cli: Cli, tmp_path: Path, hub: Hub) -> None:
    assert "covers" in cli("seed", REPO)
    sha = hub.index().repos[REPO].refs["main"]
    for kind in ("models", "kernels"):
        folder = tmp_path / "hf" / "hub" / f"{kind}--varunneal--flash-attention-3"
        assert {(folder / "refs" / ref).read_text() for ref in ("main", "v1")} == {sha}
        init = folder / "snapshots" / sha / "build/torch-cuda/__init__.py"
        assert init.is_file() and not init.is_symlink()
    cli("seed", REPO)
    init.unlink()
    init.write_text("evil")
    assert "not what the hub's manifest says" in cli("seed", REPO, code=31)


def test_keys_and_signatures(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    text = cli("keygen", str(tmp_path / "config" / "key"))
    assert [path.stat().st_mode & 0o077 for path in (tmp_path / "config", tmp_path / "config" / "key")] == [0, 0]
    public = text.rpartition("FLASH_ATTN3_TRUSTED_KEYS=")[2].strip()
    assert "not signed" in cli("check", "--keys", public, code=31)
    assert cli("sign", "--key", str(tmp_path / "config" / "key")).startswith("generation 2 is signed by the key")
    assert "signature checked" in cli("check", "--keys", str(tmp_path / "config" / "key.pub"))
    assert "no key to sign with" in cli("sign", code=2)


def test_remove_and_gc(cli: Cli, hub: Hub) -> None:
    name = next(iter(hub.index().wheels))
    assert cli("remove", name, "kernels-community/flash-attn3").startswith(f"removed wheel {name}\nremoved repository")
    assert cli("gc", "--dry-run", "--keep", "1").startswith("would remove ")
    assert json.loads(cli("gc", "--keep", "1", "--json"))["generations"] == 1
    assert cli("check").startswith("ok")
    assert "expected at least 1" in cli("gc", "--keep", "0", code=2)


def test_a_dry_run_writes_nothing_and_says_so(cli: Cli, hub: Hub, newer_wheel: Path) -> None:
    cli("publish", str(newer_wheel))
    before = hub.index()
    assert "earlier ones that are kept: 1; flash-attn3 hub rollback --to N" in " ".join(cli("list").split())
    assert json.loads(cli("list", "--json"))["earlier"] == [1]
    hub.layout.lock.unlink()
    hub.layout.lock.mkdir()  # as good as a folder without leave to write, for root too: nobody can lock it
    assert cli("prune", "--keep", "1", "--dry-run").endswith("generation 2; nothing was changed\n")
    shown = cli("rollback", "--dry-run")
    assert shown.startswith("would go back to generation 1 of ") and shown.endswith("\nnothing was changed\n")
    assert newer_wheel.name not in shown and "no generation 7 to go back to" in cli(
        "rollback", "--dry-run", "--to", "7", code=30
    )
    assert cli("gc", "--keep", "1", "--dry-run").startswith("would remove ")
    assert "Is a directory" in cli("gc", "--keep", "1", code=18)
    hub.layout.lock.rmdir()
    assert hub.index() == before
    assert cli("prune", "--keep", "2") == "generation 2; nothing was changed\n"
    assert "removed wheel" in (pruned := cli("prune", "--keep", "1")) and "gc --keep 1" in pruned
    assert cli("rollback").startswith("generation 4 holds") and newer_wheel.name in cli("list", "--names")


def test_rollback_says_what_a_damaged_hub_would_go_back_to(cli: Cli, hub: Hub, newer_wheel: Path) -> None:
    cli("publish", str(newer_wheel))
    hub.layout.generation(2).write_bytes(b"{")
    assert cli("rollback", "--dry-run").startswith("would go back to generation 1 of ")
    assert hub.generation() == 2, "nothing was changed"
    assert cli("rollback").startswith("generation 1 holds what was in the earlier one: 3 wheels\n  flash_attn3_sm121-")


def test_export_says_where(cli: Cli, tmp_path: Path) -> None:
    text = cli("export", str(tmp_path / "www"))
    assert text.startswith(f"exported to {tmp_path}/www") and "nginx.conf" in text
