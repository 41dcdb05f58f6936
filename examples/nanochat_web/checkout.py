"""The user's own nanochat: where it is, which Python runs it, and how a child of it is started under the override."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.layout import KNOWN_REPOS
from flash_attn3_sm121.hub.patch import OverrideConfig
from flash_attn3_sm121.hub.run import environment

from .checkpoints import Checkpoint, discover, looked_at
from .nanochat_code import Code, read_code

WORKER = Path(__file__).absolute().with_name("worker.py")
CLONE = "git clone https://github.com/karpathy/nanochat && cd nanochat && uv sync --extra gpu"
# Asked of nanochat's Python: cheap, nothing is imported.
_PROBE = """
import importlib.util, json, sys
found = {name: importlib.util.find_spec(name) is not None for name in ("torch", "kernels", "flash_attn3_sm121")}
print(json.dumps({"version": list(sys.version_info[:3]), **found}))
"""


@dataclass(frozen=True, kw_only=True)
class PythonFacts:
    """What nanochat's Python is and has."""

    version: tuple[int, int, int]
    torch: bool
    kernels: bool
    ours: bool

    def __str__(self) -> str:
        number = ".".join(str(part) for part in self.version)
        package = "installed there" if self.ours else "lent by this server for each run (not installed there)"
        return f"Python {number}, flash_attn3_sm121 {package}"


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A nanochat checkout that can be run."""

    root: Path
    python: Path
    base: Path
    experiments: Path
    code: Code
    facts: PythonFacts

    def found(self) -> tuple[Checkpoint, ...]:
        """Every checkpoint on disk. catalog.py says which can be loaded."""
        return discover(self.base, self.experiments, self.code.layout)

    def looked_at(self) -> tuple[Path, ...]:
        return looked_at(self.base, self.experiments, self.code.layout)

    def tokenizer(self, checkpoint: Checkpoint) -> Path:
        """The folder of the tokenizer that nanochat takes for this checkpoint."""
        if checkpoint.experiment is None:
            return self.base / "tokenizer"
        return self.experiments / checkpoint.experiment / "tokenizer"

    def environment(self, checkpoint: Checkpoint, environ: Mapping[str, str]) -> dict[str, str]:
        """What `flash-attn3 run` gives a command, and what nanochat needs to find this checkpoint."""
        config = OverrideConfig(repos=dict(KNOWN_REPOS), hub=None, quiet=False, stand_in=True)
        env = environment(config, environ)
        env.update(NANOCHAT_BASE_DIR=str(self.base), PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
        if checkpoint.experiment is not None:
            env.update(NANOCHAT_EXPERIMENT=checkpoint.experiment, NANOCHAT_EXPERIMENTS_DIR=str(self.experiments))
        return env

    def worker_command(self, checkpoint: Checkpoint, device: str | None, decode: str = "batch") -> tuple[str, ...]:
        return (
            str(self.python),
            str(WORKER),
            *("--source", checkpoint.source.name, "--tag", checkpoint.tag, "--step", str(checkpoint.step)),
            *("--style", checkpoint.source.style),
            *(("--device", device) if device else ()),
            *(("--decode", decode) if decode != "batch" else ()),
        )


def as_typed(command: Sequence[str]) -> str:
    """The command as a person would type it, for messages."""
    return f"flash-attn3 run -- {shlex.join(command)}"


def python_facts(python: Path) -> PythonFacts:
    try:
        done = subprocess.run(
            [str(python), "-c", _PROBE], capture_output=True, text=True, check=False, timeout=60, cwd="/"
        )
    except OSError as error:
        raise UsageError(
            f"nanochat's Python {python} does not start: {error.strerror}", hint="--python FILE"
        ) from error
    if done.returncode != 0:
        raise UsageError(
            f"nanochat's Python {python} ended with exit code {done.returncode}: {done.stderr.strip()[-400:]}",
            hint=f"try it yourself: {python} -V",
        )
    data = json.loads(done.stdout)
    version = data["version"]
    return PythonFacts(
        version=(version[0], version[1], version[2]),
        torch=data["torch"],
        kernels=data["kernels"],
        ours=data["flash_attn3_sm121"],
    )


def _folder(given: str | None, default: Path) -> Path:
    """Absolute, and `~` followed: the model processes run in another folder than this one."""
    return Path(given).expanduser().absolute() if given else default


def open_checkout(root: Path, python: Path | None, environ: Mapping[str, str] = os.environ) -> Checkout:
    """Look the checkout over; whatever is missing is said with the next command to type."""
    root = root.expanduser().absolute()
    if not root.is_dir():
        raise UsageError(f"--nanochat {root}: there is no such folder", hint=CLONE)
    engine = root / "nanochat" / "engine.py"
    if not engine.is_file():
        raise UsageError(
            f"--nanochat {root} is no nanochat checkout: expected {engine}", hint="give the folder that git cloned"
        )
    code = read_code(root)
    if code is None:
        raise UsageError(
            f"--nanochat {root} keeps its checkpoints in a way that this page does not know: neither a table of "
            "*_checkpoints in nanochat/checkpoint_manager.py nor get_experiment_dir in nanochat/common.py",
            hint=f"git -C {shlex.quote(str(root))} checkout master   (a branch may be ahead of this page)",
        )
    # Not resolved: a virtual environment's python is a link, and only by its own path does it find its packages.
    chosen = (python.expanduser() if python else root / ".venv" / "bin" / "python").absolute()
    if not chosen.exists():
        raise UsageError(
            f"nanochat's own Python was looked for at {chosen} and is not there",
            hint=f"cd {shlex.quote(str(root))} && uv sync --extra gpu   (or name another one: --python FILE)",
        )
    facts = python_facts(chosen)
    if facts.version < (3, 10, 0):
        raise UsageError(f"{chosen} is Python {facts.version[0]}.{facts.version[1]}, expected 3.10 or newer")
    if not facts.torch:
        raise UsageError(
            f"{chosen} has no torch, so nanochat cannot run there",
            hint=f"cd {shlex.quote(str(root))} && uv sync --extra gpu   (or name another one: --python FILE)",
        )
    home = Path(environ.get("HOME") or Path.home())
    base = _folder(environ.get("NANOCHAT_BASE_DIR"), home / ".cache" / "nanochat")
    return Checkout(
        root=root,
        python=chosen,
        base=base,
        experiments=_folder(environ.get("NANOCHAT_EXPERIMENTS_DIR"), base / "experiments"),
        code=code,
        facts=facts,
    )
