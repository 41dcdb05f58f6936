"""Upstream's own tests of torch.compile, torch.export and ahead-of-time packages, on the fallback.

They are newer than the pin and on no package index: FA3_SOURCE names a checkout of 3.0.0 (e2743ab5) or later.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.dropin import python
from tests.inductor import needs_inductor

NAME = "test_torch_compile_and_export.py"
# The tests say .cuda(), which means nothing where there is no device.
CONFTEST = """
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    torch.nn.Module.cuda = lambda self: self
    torch.Tensor.cuda = lambda self: self
"""


@pytest.mark.slow
@needs_inductor
def test_compile_export_and_package(tmp_path: Path) -> None:
    source = Path(os.environ.get("FA3_SOURCE", "/nonexistent")) / "hopper" / NAME
    if not source.is_file():
        pytest.skip(f"FA3_SOURCE names no checkout of upstream with hopper/{NAME}")
    (tmp_path / NAME).write_bytes(source.read_bytes())
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), NAME, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "2 passed" in done.stdout
