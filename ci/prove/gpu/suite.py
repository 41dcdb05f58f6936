"""The stages of a run, in order, and why some are not applicable. Pure: facts about the machine are arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.prove.gpu.stage import Stage

NO_CUDA = "needs a CUDA device; this run is on {device}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The facts that the list of stages depends on."""

    python: str
    device: str
    native: bool  # the wheel holds a kernel library
    proxy: bool
    root: Path  # this checkout
    sanitizer: str | None = None  # its path
    kernel_filter: bool = False  # it knows --kernel-regex
    pytest: bool = False
    triton: bool = False
    transformers: bool = False
    sample: int = 1
    minutes: float = 8.0

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def backend(self) -> str:
        return "native" if self.cuda and self.native else "auto"


# The kernels themselves are under test in these stages; the canary has stages of its own before.
_NO_CANARY: Mapping[str, str] = {"FLASH_ATTN3_CANARY": "0"}
_BF16 = ("--dtype", "bf16")
# Of the fallback, which serves calls that no kernel serves. On a CPU the other stages test it already.
_FALLBACK_SAMPLE = 7
_NO_GRAPHS = "the wheel holds no kernels: the fallback looks at lengths on the host, which a capture forbids"


def _absent(setting: Setting, there: bool = True, why: str = "") -> str | None:
    """Why a stage that needs a CUDA device, and possibly something else, is not applicable; None where it is.

    Args:
        there: whether the other thing is there.
        why: the reason where it is not.
    """
    if not setting.cuda:
        return NO_CUDA.format(device=setting.device)
    return None if there else why


def _cases(setting: Setting, source: str, *, sample: int | None = None, backend: str = "") -> tuple[str, ...]:
    """The command that runs a set of cases."""
    argv = (
        setting.python,
        "-m",
        "ci.prove.gpu.probes.loop",
        f"ci.prove.gpu.probes.{source}",
        "--device",
        setting.device,
    )
    number = setting.sample if sample is None else sample
    return (*argv, "--backend", backend or setting.backend, "--sample", str(number))


def _command(setting: Setting, name: str, title: str, words: Sequence[str], **more: Any) -> Stage:
    """A stage that is one of our package's own commands."""
    return Stage(
        name=name, title=title, argv=(setting.python, "-m", "flash_attn3_sm121", *words), kind="command", **more
    )


def _sanitized(setting: Setting, tool: str) -> Stage:
    absent = _absent(setting, setting.native, "the wheel holds no kernels of ours to check") or _absent(
        setting, setting.sanitizer is not None, "compute-sanitizer is neither on PATH nor in the CUDA toolkit"
    )
    argv = [setting.sanitizer or "compute-sanitizer", "--tool", tool]
    argv += ["--kernel-regex", "kns=flash"] if setting.kernel_filter else []
    return Stage(
        name=tool,
        title=f"compute-sanitizer --tool {tool}, a few calls",
        argv=(*argv, *_cases(setting, "sets:sanitizer", sample=1), *_BF16),
        share=50,
        stall_s=120.0,
        env={**_NO_CANARY, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # so that a step out of bounds is one
        absent=absent,
        reader="sanitizer",
    )


def _bench(setting: Setting) -> Stage:
    # Twelve workloads; a third of the stage's usual share goes into timing, the rest into checking them.
    each = max(0.2, setting.minutes * 60 * 0.2 / 12 / 3)
    words = ["bench", "--quick", "--device", setting.device, "--seconds", f"{each:.2g}"]
    words += ["--json", "bench.json", "--html", "bench.html"]
    words += ["--note", "PROXY: kernels of the 99 KB family on another device, not for use"] if setting.proxy else []
    words += [] if setting.cuda else ["--workload", "train-causal-d64", "--backend", "sdpa"]
    return _command(
        setting, "bench", "Bench, ours and torch's own side by side", words, share=100, reader="bench",
        files=("bench.json", "bench.html"),
    )  # fmt: skip


def _fallback(setting: Setting) -> Stage:
    """Bench the fallback. docs/results/h200.json has the same from before torch's FlashAttention served it."""
    globs = ("train-window*", "chunked-prefill", "decode-*", "varlen-*", "paged-*")
    words = ["bench", "--quick", "--device", setting.device, "--seconds", "0.3", "--json", "fallback.json"]
    words += ["--backend", "sdpa", *(word for glob in globs for word in ("--workload", glob))]
    title = "Bench of the sdpa fallback beside a dense mask"
    return _command(setting, "fallback", title, words, share=40, absent=_absent(setting), files=("fallback.json",))


def _tests(setting: Setting) -> Stage:
    root = setting.root
    return Stage(
        name="tests",
        title="The tests marked gpu, against the wheel",
        # `-o pythonpath=`: the checkout's own package would come before the wheel's.
        argv=(
            setting.python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-o", "pythonpath=",
            "-c", str(root / "pyproject.toml"), "--rootdir", str(root), str(root / "tests" / "fallback"),
        ),
        kind="command",
        share=40,
        absent=_absent(setting, setting.pytest, "pytest is not importable here"),
        reader="pytest",
    )  # fmt: skip


def stages(setting: Setting) -> tuple[Stage, ...]:
    """All stages: cheap ones that tell the most come first."""
    tolerant = setting.proxy or not setting.cuda
    packed = () if setting.cuda else ("--match", "packed")
    return (
        # The first one imports torch from a cold disk and makes the driver load: half a minute has been seen.
        _command(
            setting, "doctor", "flash-attn3 doctor", ("doctor", "--json"), share=60,
            reader="expected-faults" if tolerant else "doctor",
        ),
        _command(
            setting, "selftest", "flash-attn3 selftest, backend chosen by itself",
            ("selftest", "--json", "--device", setting.device, *_BF16, *packed), share=40, reader="selftest",
        ),
        Stage(
            name="selftest-native", title=f"The selftest's cases, backend {setting.backend}",
            argv=_cases(setting, "sets:selftest"), share=40,
        ),
        Stage(
            name="numerics", title="Numerics: forward, backward, packed, caches, splits; head dims 16 to 256",
            argv=_cases(setting, "sets:numerics"), share=130, env=_NO_CANARY,
        ),
        Stage(
            name="sinks", title="Attention sinks and gradients of the LSE, forward and backward",
            argv=_cases(setting, "sinks:cases"), share=20, env=_NO_CANARY,
        ),
        Stage(
            name="sdpa", title="The sdpa fallback, on the same numerics", share=40, absent=_absent(setting),
            argv=_cases(setting, "sets:numerics", sample=_FALLBACK_SAMPLE * setting.sample, backend="sdpa"),
        ),
        _fallback(setting),
        Stage(
            name="determinism", title="Determinism, bit for bit", argv=_cases(setting, "repeat:cases"), share=25,
            env=_NO_CANARY,
        ),
        _sanitized(setting, "memcheck"),
        _sanitized(setting, "racecheck"),
        Stage(
            name="graphs", title="CUDA graphs: decoding captured once, replayed with other lengths",
            argv=_cases(setting, "graphs:cases"), share=25,
            absent=_absent(setting, setting.native, _NO_GRAPHS),
        ),
        Stage(
            name="compile", title="torch.compile(fullgraph=True), forward and backward",
            argv=_cases(setting, "compiled:cases"), share=60, stall_s=120.0,
        ),
        # transformers asks for a device before it takes flash_attention_3.
        Stage(
            name="transformers", title="transformers: a small model through flash_attention_3, beside eager",
            argv=(*_cases(setting, "clients:cases", sample=1), *_BF16), share=30,
            absent=_absent(setting, setting.transformers, "transformers is not importable here"),
        ),
        # Most of our libraries have no deterministic backward; `deterministic=True` is then served by the fallback.
        Stage(
            name="determinism-sdpa", title="The sdpa fallback's deterministic backward, bit for bit",
            argv=_cases(setting, "repeat:ordered_backward", backend="sdpa"), share=20, absent=_absent(setting),
        ),
        _tests(setting),
        # A kernel is compiled within a case.
        Stage(
            name="flex", title="The flex fallback, on the selftest's cases", share=50, stall_s=120.0,
            argv=(*_cases(setting, "sets:selftest", backend="flex"), *_BF16),
            absent=_absent(
                setting, setting.triton, "triton, through which FlexAttention compiles, is not importable here"
            ),
        ),
        _bench(setting),
    )  # fmt: skip
