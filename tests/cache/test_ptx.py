"""A kernel's hash: that of its PTX and of what it uses, whatever else its file holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ci.cache.objects import ObjectReport, ObjectStore
from ci.cache.ptx import kernel_hashes
from tests.fakes.ptx_files import ptx

BOTH = kernel_hashes(ptx("f1", "f2"))


def test_a_kernel_is_the_same_in_another_file() -> None:
    assert kernel_hashes(ptx("f2", number=3)) == {"f2": BOTH["f2"]} and BOTH["f1"] != BOTH["f2"]
    for other in (ptx("f2").replace("mov", "add"), ptx("f2", gpu="sm_120"), ptx("f2").replace("9.0", "9.1")):
        assert kernel_hashes(other)["f2"] != BOTH["f2"]


def test_what_a_kernel_uses_belongs_to_it() -> None:
    text = ptx("f1", "f2")
    shared = text.replace(".global", ".extern .shared .align 16 .b8 room[];\n.global")
    assert kernel_hashes(shared) == BOTH
    using = shared.replace("%r1, f1", "%r1, room")
    assert kernel_hashes(using)["f1"] != kernel_hashes(using.replace(".align 16", ".align 8"))["f1"]
    assert kernel_hashes(using)["f2"] == BOTH["f2"]
    calling = f"{text}\n.func help(.param .b32 x)\n{{\n\tret;\n}}\n".replace("%r1, f1", "%r1, help")
    assert kernel_hashes(calling)["f1"] != kernel_hashes(calling.replace("ret", "trap"))["f1"]
    assert kernel_hashes(calling)["f2"] == BOTH["f2"]


def test_the_kernels_of_an_object_for_one_gpu(tmp_path: Path) -> None:
    store = ObjectStore(cache=tmp_path)
    texts = {f"fwd.{gpu}.ptx": ptx("f1", "f2", gpu=f"sm_{gpu}") for gpu in (120, 121)}
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    report = ObjectReport(
        unit="fwd", key="ab", sha256="", usage=(), ptx=hashes, size=0, cpu_s=1.0, wall_s=1.0, rss_gb=1.0
    )
    made = tmp_path / "made.o"
    made.write_bytes(b"")
    store.put(report, made=made, log="", ptx={name: text.encode() for name, text in texts.items()})
    assert store.kernels([report], "sm_121") == BOTH
    assert store.kernels([report], "sm_12") == {}
