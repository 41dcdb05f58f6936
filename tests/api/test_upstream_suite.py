"""Upstream's own tests of torch.compile, torch.export and ahead-of-time packages, on the fallback.

They are newer than the pin and on no package index: git fetches the one file from upstream, at 3.0.0; it is not kept.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.sources.lock import read_lock
from tests.checkouts import Checkout
from tests.fakes.dropin import python
from tests.inductor import needs_inductor

RELEASE = "e2743ab5b3803bb672b16437ba98a3b1d4576c50"  # 3.0.0
NAME = "test_torch_compile_and_export.py"
# The tests say .cuda(), which means nothing where there is no device, and their model is large for a CPU.
CONFTEST = """
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    torch.nn.Module.cuda = lambda self: self
    torch.Tensor.cuda = lambda self: self


def pytest_collection_modifyitems(items):
    for item in items:
        item.module.create_model.__defaults__ = (2, 64, 256, 4)
"""


@pytest.mark.slow
@pytest.mark.network
@needs_inductor
def test_compile_export_and_package(tmp_path: Path) -> None:
    folder = Checkout(read_lock().upstream.url, RELEASE, (f"hopper/{NAME}",)).into(tmp_path) / "hopper"
    (folder / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), NAME, cwd=folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "2 passed" in done.stdout
