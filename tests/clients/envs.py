"""Environments with real versions of client packages and an install of ours."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path

import pytest

from ci.index import Wanted
from ci.index.members import NoParts, opened
from ci.settings import Settings
from tests.environments import python_with

REPOSITORY = Path(__file__).parents[2]
COMMON = ("safetensors==0.8.0", "regex==2026.11.15", "numpy==2.2.6")

# client -> what its users would have beside it; pinned, so that a run in a year tests the same.
CLIENTS: dict[str, tuple[str, ...]] = {
    "transformers-4.57": ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2", *COMMON),
    "transformers-5.17": ("transformers==5.17.0", "tokenizers==0.23.3", "huggingface_hub==1.33.0", *COMMON),
    "transformers-5.23": ("transformers==5.23.0", "tokenizers==0.23.3", "huggingface_hub==2.4.0", *COMMON),
    "transformers-5.24": ("transformers==5.24.0", "tokenizers==0.23.3", "huggingface_hub==2.4.0", *COMMON),
    # It imports transformers, and takes FlashAttention-2 for granted.
    "ring-flash-attn-0.1": (
        "ring-flash-attn==0.1.8",
        "transformers==4.57.6",
        "tokenizers==0.22.2",
        "huggingface_hub==0.36.2",
        "einops==0.8.1",  # OpenRLHF's
        *COMMON,
    ),
    "diffusers-0.35": ("diffusers==0.35.2", "huggingface_hub==0.36.2", "pillow==12.0.0", *COMMON),
    # With the `kernels` that it accepts: its gpt-oss asks for one of the hub's kernels.
    "gpt-oss": (
        "transformers==5.17.0",
        "tokenizers==0.23.3",
        "huggingface_hub==1.33.0",
        "kernels==0.16.2",
        *COMMON,
    ),
    "upstream": ("einops==0.8.1",),  # for the tests of FlashAttention-3 itself
    "diffusers-0.42": ("diffusers==0.42.1", "huggingface_hub==2.4.0", "pillow==13.0.0", *COMMON),
}
# Taken without what they ask for: CUDA libraries, a torch of their own, or FlashAttention-2.
BARE = {
    "transformer-engine-2.20": ("transformer-engine==2.20.2",),
    "wan-2.2": ("wan22==2.2.11",),
    "diffusion": ("diffsynth==2.1.12", "ltx-core==1.0.0", "sam3==0.1.4", "xfuser==0.7.0", "einops==0.8.2"),
    "yunchang-0.6": ("yunchang==0.6.4",),
    "xformers-0.0.35": ("xformers==0.0.35", "numpy==2.2.6"),
    # What its import touches, but for torch, what torch has beside it, and numpy. pyarrow is a third of its 410 MB.
    "unsloth-2026.10": (
        *("unsloth==2026.10.9", "unsloth-zoo==2026.10.9", "peft==0.21.2", "trl==1.15.0", "accelerate==1.15.0"),
        *("transformers==5.17.0", "tokenizers==0.23.3", "huggingface_hub==1.33.0", "safetensors==0.8.0"),
        *("httpx==0.28.1", "httpcore==1.0.9", "h11==0.16.0", "anyio==4.16.0", "idna==3.20"),
        *("requests==2.34.2", "urllib3==2.8.0", "charset-normalizer==3.5.3", "regex==2026.11.15", "pillow==13.0.0"),
        *("datasets==4.8.5", "pyarrow==24.0.0", "pandas==2.3.3", "python-dateutil==2.9.0.post0", "pytz==2026.1"),
        *("six==1.17.0", "dill==0.4.1", "multiprocess==0.70.19", "xxhash==3.6.0", "psutil==7.2.2", "tqdm==4.70.1"),
        *("certifi==2026.10.19.post1", "pyyaml==6.0.3"),
    ),
    "x-transformers-2.26": (
        "x-transformers==2.26.4",
        "einops==0.8.2",
        "einx==0.4.3",
        "frozendict==2.5.1",
        "loguru==0.7.3",
        "torch-einops-utils==0.2.0",
    ),
}
# Nothing is installed of them: files are read out of their wheels.
VLLM = Wanted(
    project="vllm",
    filename="vllm-0.33.0-cp38-abi3-manylinux_2_28_aarch64.whl",
    sha256="e9e404f52c8494b69bd83fe99fe7ecfa9f6b89fbd156d2a9639c24ea41d6d606",
)
OPENRLHF = Wanted(
    project="openrlhf",
    filename="openrlhf-0.11.2-cp311-cp311-manylinux1_x86_64.whl",
    sha256="c969d70db03a70724c3d8a5a01186c6e0728bce624fb3dff95e39b5396acefa6",
)
TRANSFORMERS = tuple(name for name in CLIENTS if name.startswith(("transformers-4", "transformers-5")))


@functools.cache
def python_of(client: str) -> Path:
    """The interpreter of a client's environment; made if the cache has none."""
    wanted = CLIENTS[client] if client in CLIENTS else ("--no-deps", *BARE[client])
    return python_with(f"client-envs/{client}", wanted, ours=REPOSITORY)


def texts(wanted: Wanted, *names: str) -> dict[str, str]:
    """Files out of a wheel on an index: only they come through the network."""
    try:
        with opened(wanted, Settings()) as wheel:
            return {name: wheel.read(name).decode() for name in names}
    except NoParts as error:
        pytest.skip(str(error))


def run(client: str, script: Path, *arguments: str, home: Path, as_flash_attn: bool = False) -> dict[str, object]:
    """Run a script in a client's environment, offline and at home in `home`; the JSON object of its last line.

    With `as_flash_attn` it is `flash-attn3 run --as flash_attn` that runs it.
    """
    environ = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LD_LIBRARY_PATH")},
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(python_of(client)), str(script), *arguments]
    if as_flash_attn:
        command = [command[0], "-m", "flash_attn3_sm121", "run", "--as", "flash_attn", "--quiet", "--", *command]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert isinstance(answer, dict)
    return answer
