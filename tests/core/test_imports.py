"""What an import costs and touches, and that the ops are registered once whatever loads the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import flash_attn3_sm121

PACKAGE = Path(flash_attn3_sm121.__file__).parent


def run(code: str, *, path: Path = PACKAGE.parent, expect: int = 0) -> str:
    """Run code in a fresh Python that finds the package in `path`."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout if expect == 0 else done.stderr


def test_importing_the_package_imports_next_to_nothing() -> None:
    code = (
        "import json; before = set(sys.modules); import flash_attn3_sm121; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = json.loads(run(code))
    assert "torch" not in loaded
    ours = {name for name in loaded if name.startswith("flash_attn3_sm121")}
    assert ours == {"flash_attn3_sm121", "flash_attn3_sm121._version"}
    assert not {name.partition(".")[0] for name in loaded} & {
        "torch",
        "numpy",
        "triton",
        "importlib_metadata",
        "argparse",
    }


def test_the_interface_adds_few_modules_to_torch_and_touches_no_cuda() -> None:
    code = (
        "import json, torch; before = set(sys.modules); import flash_attn3_sm121.api.interface; "
        "print(json.dumps([sorted(set(sys.modules) - before), torch.cuda.is_initialized()]))"
    )
    loaded, initialised = json.loads(run(code))
    assert not initialised
    foreign = {name for name in loaded if not name.startswith(("flash_attn3_sm121", "_flash_attn3_sm121"))}
    heavy = {"torch._dynamo", "torch._inductor", "torch.nn.attention.flex_attention", "triton", "sympy", "transformers"}
    assert not foreign & heavy
    assert len(foreign) < 15, foreign


def test_without_torch_the_package_and_its_tools_still_import() -> None:
    code = (
        "sys.modules['torch'] = None\n"
        "import flash_attn3_sm121, flash_attn3_sm121.dispatch.decide, flash_attn3_sm121.call.facts\n"
        "import flash_attn3_sm121.native.library\n"
        "from flash_attn3_sm121.cli import main\n"
        "assert flash_attn3_sm121.use_backend and flash_attn3_sm121.__version__\n"
        "try:\n    flash_attn3_sm121.flash_attn_func\nexcept ImportError as error:\n    print('says', error)\n"
        "sys.exit(main(['--help']))"
    )
    out = run(code)
    assert out.startswith("says ")
    assert "explain" in out


REGISTERED_TWICE = """
import importlib.util, torch
import flash_attn_interface  # ours: the drop-in
import flash_attn3_sm121.api.ops as first
record = first.register()
for name in [n for n in sys.modules if n.startswith('flash_attn3_sm121')]:
    del sys.modules[name]
import flash_attn3_sm121.api.ops as second
assert second is not first and second.register() is record
name, init, folders = '_flash_attn3_cuda_abc1234', {init!r}, [{folder!r}]
spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=folders)
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
x = torch.randn(1, 4, 2, 16)
assert module.flash_attn_func(x, x, x).shape == x.shape
assert module.flash_attn_interface.flash_attn_func(x, x, x).shape == x.shape
assert not record.foreign
print(second.owner())
"""


def test_a_package_that_is_loaded_twice_registers_once() -> None:
    code = f"sys.path.append({str(PACKAGE / '_dropin')!r})\n"
    code += REGISTERED_TWICE.format(init=str(PACKAGE / "__init__.py"), folder=str(PACKAGE))
    assert run(code).startswith("flash_attn3_sm121 3.0.0")


FOREIGN = """
import torch
theirs = torch.library.Library('flash_attn_3', 'DEF')
theirs.define('fwd(Tensor q) -> Tensor')
theirs.impl('fwd', lambda q: q + 1, 'CPU')
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import flash_attn3_sm121 as fa3
    x = torch.randn(1, 4, 2, 16)
    assert fa3.flash_attn_func(x, x, x).shape == x.shape
    assert torch.equal(torch.ops.flash_attn_3.fwd(x), x + 1)
    assert fa3.get_scheduler_metadata(1, 1, 8, 2, 2, 16, torch.zeros(1, dtype=torch.int32)).numel() == 12
print([str(w.message) for w in caught], fa3.explain())
"""


def test_ops_of_an_upstream_install_stay_and_that_is_said() -> None:
    out = run(FOREIGN)
    assert "pip uninstall flash_attn_3" in out
    assert "note: torch.ops.flash_attn_3 belongs to another flash_attn_3" in out


@pytest.mark.parametrize("name", ["flash_attn3_sm121", "flash_attn3_sm121.call.backend", "flash_attn3_sm121.cli"])
def test_importing_has_no_output(name: str) -> None:
    assert run(f"import {name}") == ""
