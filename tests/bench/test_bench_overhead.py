"""The overhead bench: both layers reach the same op, upstream's file is found by its git id, nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from flash_attn3_sm121.api import attend, interface
from flash_attn3_sm121.bench import overhead, upstream
from flash_attn3_sm121.console import plain
from flash_attn3_sm121.errors import SourceError

# A stand-in with the shape of the real thing: an import of the kernels, and functions that call `flash_attn_3_cuda`.
STAND_IN = b"""
import torch
import flash_attn_3._C
flash_attn_3_cuda = torch.ops.flash_attn_3
def flash_attn_func(q, k, v, causal=False, window_size=(-1, -1)):
    return flash_attn_3_cuda.fwd(q, k, v)[0]
def flash_attn_varlen_func(q, k, v, cu_q, cu_k, longest_q, longest_k, causal=False):
    return flash_attn_3_cuda.fwd(q, k, v)[0]
def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, causal=False):
    return flash_attn_3_cuda.fwd(q, k_cache, v_cache)[0]
"""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "CALLS", 2)
    monkeypatch.setattr(overhead, "ROUNDS", 2)


def _checkout(folder: Path, data: bytes) -> Path:
    file = folder / upstream.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    return folder


def test_git_ids() -> None:
    assert upstream.blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_only_the_pinned_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _checkout(tmp_path / "clone", STAND_IN)
    environ = {"FA3_SOURCE": str(source), "FA3_CACHE": str(tmp_path / "cache")}
    with pytest.raises(SourceError, match="expected blob 1158ee02ad27") as caught:
        upstream.find(environ)
    assert "FA3_SOURCE=" in str(caught.value)
    monkeypatch.setattr(upstream, "PINNED_BLOB", upstream.blob_id(STAND_IN))
    assert upstream.find(environ) == source / upstream.FILE
    cached = _checkout(tmp_path / "cache" / "sources" / "some-key", STAND_IN)
    assert upstream.find({"FA3_CACHE": str(tmp_path / "cache")}) == cached / upstream.FILE
    with pytest.raises(SourceError, match="the cache is empty"):
        upstream.find({"XDG_CACHE_HOME": str(tmp_path / "none")})


def test_the_pin_is_the_locks() -> None:
    trees = sorted((Path(__file__).parents[2] / "third_party").rglob("*hopper*tree*"))
    assert trees, "the source lock keeps a manifest of upstream's folder"
    assert any(upstream.PINNED_BLOB in tree.read_text(encoding="utf-8") for tree in trees)


def test_upstreams_file_runs_over_our_op_and_leaves_no_module_behind(tmp_path: Path) -> None:
    file = _checkout(tmp_path, STAND_IN) / upstream.FILE
    before = {name for name in sys.modules if name.startswith("flash_attn_3")}
    module = upstream.load(file, overhead.trivial_ops())
    assert {name for name in sys.modules if name.startswith("flash_attn_3")} == before
    q = torch.zeros(4, 1, 8, 128, dtype=torch.bfloat16)
    assert module.flash_attn_func(q, q, q).shape == (4, 1, 8, 128)


@pytest.mark.usefixtures("few")
def test_both_layers_are_measured_over_the_same_op(tmp_path: Path) -> None:
    theirs = upstream.load(_checkout(tmp_path, STAND_IN) / upstream.FILE, overhead.trivial_ops())
    before = attend.engine
    with overhead.native_on_cpu():
        calls = overhead._calls(interface, grad=False)
        fixed = overhead.trivial_ops().fwd(*(torch.zeros(4, 1, 8, 128, dtype=torch.bfloat16),) * 3)[0]
        for name, call in calls.items():
            found = call()
            assert found.data_ptr() == fixed.data_ptr(), name  # type: ignore[attr-defined]
        assert attend.engine is not before
    assert attend.engine is before and set(overhead._calls(theirs, grad=False)) == set(calls)


@pytest.mark.usefixtures("few")
def test_text_without_upstream_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FA3_SOURCE", raising=False)
    monkeypatch.setenv("FA3_CACHE", str(tmp_path))
    costs, why = overhead.overhead_costs()
    text = plain(overhead.overhead_table(costs, why))
    assert "upstream's layer was not measured" in text and "flash_attn_with_kvcache, append" in text
