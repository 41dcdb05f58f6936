"""The commands of the documents: how each is run here, and the few in blocks of commands that are not."""

from __future__ import annotations

import pytest

from tests.docs.kinds import Run, Serve

NETWORK, NVCC = frozenset({"network"}), frozenset({"nvcc"})
PUBLISH = "flash-attn3 hub publish wheels/*.whl"
KEYGEN = "flash-attn3 hub keygen ~/.config/hub-key"
TOKEN = (
    "python3 -c 'import os, secrets; os.umask(0o77); "
    'open(os.path.expanduser("~/.config/hub-token"), "w").write(secrets.token_urlsafe())\''
)
SMOKE = "--profile smoke --archs 12.1"
SMOKE_WHEEL = f"rm wheels/*.whl && python -m ci wheel {SMOKE} --no-publish --output wheels"
SMOKE_PARTS = f"python -m ci build {SMOKE} --output build/artifacts"
SHORT_BENCH = "--workload train-causal-d64 --backend sdpa --seconds 1"
CHAT_CLI = """\
from kernels import get_kernel
flash_attn = get_kernel("varunneal/flash-attention-3").flash_attn_interface  # nanochat's own line
print("chat:", flash_attn.flash_attn_func.__module__)
"""

TABLE: dict[str, Run | Serve] = {
    # README.md
    "flash-attn3 doctor": Run(says="Who would serve a typical call"),
    "flash-attn3 selftest": Run(says=r"(\d+) of \1 agree with fp64"),
    "flash-attn3 explain": Run(says="backend: sdpa"),
    "flash-attn3 bench --quick": Run(says="against dense-mask", adds=SHORT_BENCH),
    "FLASH_ATTN3_SKIP_CUDA=1 pip install .": Run(
        says=r"flash-attn3 3\.0\.0",
        then=('"$DOCS_VENV"/bin/flash-attn3 --version',),
        environ={"PIP_NO_DEPS": "1"},  # torch: gigabytes, and the environment sees this one's
        marks=NETWORK,
    ),
    'flash-attn3 run -- python -m scripts.chat_cli -i sft -p "Test"': Run(
        says=r"chat: flash_attn3_sm121", files={"scripts/chat_cli.py": CHAT_CLI, "scripts/__init__.py": ""}
    ),
    "flash-attn3 run --as flash_attn -- python main.py": Run(
        says="main: flash_attn 2.8.3",
        files={"main.py": 'import flash_attn\nprint("main: flash_attn", flash_attn.__version__)\n'},
    ),
    "python -m ci wheel-fa2": Run(says=r"wheels/fa2/flash_attn-2\.8\.3-py3-none-any\.whl"),
    "pip install wheels/fa2/flash_attn-2.8.3-py3-none-any.whl": Run(
        says="served: 2.8.3",
        before=("python -m ci wheel-fa2",),
        then=('"$DOCS_VENV"/bin/python -c "import flash_attn; print(\'served:\', flash_attn.__version__)"',),
        environ={"PIP_NO_DEPS": "1"},  # ours is on PYTHONPATH there, and not installed
    ),
    "flash-attn3 override enable": Run(
        says=r"enabled for[\s\S]*not enabled", then=("flash-attn3 override disable", "flash-attn3 override status")
    ),
    PUBLISH: Run(says="published: generation 1"),
    "flash-attn3 hub serve": Serve(before=(PUBLISH,)),
    "make plan": Run(says=r"total: \d+ units", marks=NETWORK),
    "make help": Run(says="make fresh", then=("! make help | grep '.\\{81\\}'",)),
    # CONTRIBUTING.md
    "python -m flash_attn3_sm121.dispatch.support --write README.md": Run(
        says="^$", before=("cp README.md before.md",), then=("cmp README.md before.md",)
    ),
    'make plan ARCHS="X.Y"': Run(says=r"serves\s+9\.0", puts={"X.Y": "9.0"}, marks=NETWORK),
    'make wheel PROFILE=smoke ARCHS="X.Y"': Run(
        says="sha256", puts={"X.Y": "12.1"}, marks=NVCC | NETWORK, own_cache=False
    ),
    "python -m ci lock --source fa --output new/lock.json": Run(
        says=r"new/lock\.json",
        then=("cmp new/lock.hopper.tree third_party/flash-attention/lock.hopper.tree",),
        marks=NETWORK,
        own_cache=False,
    ),
    "python -m ci lock --source fa --pin head": Run(
        says=r"FlashAttention +0251105 -> [\s\S]*misfit +none\n",
        then=("cmp third_party/flash-attention/lock-head.hopper.tree third_party/flash-attention/lock.hopper.tree",),
        marks=NETWORK,
        own_cache=False,
    ),
    "python -m ci fetch --source fa --pin head --edits": Run(
        says=r"edits +\d+ fit",
        before=("python -m ci lock --source fa --pin head",),
        marks=NETWORK,
        own_cache=False,
    ),
    "FA3_SOURCE=fa make wheel PIN=head PROFILE=smoke": Run(
        says="sha256",
        before=("python -m ci lock --source fa --pin head",),
        adds="ARCHS=12.1",
        marks=NVCC | NETWORK,
        own_cache=False,
    ),
    "cp new/lock* third_party/flash-attention/": Run(
        says="good: hopper",
        before=("python -m ci lock --source fa --output new/lock.json",),
        then=("python -m ci lock --check third_party/flash-attention/lock.json",),
        marks=NETWORK,
        own_cache=False,
    ),
    # third_party/flash-attention/README.md
    "python -m ci wheel --source fa --lock newest.json": Run(
        says="sha256",
        adds=f"{SMOKE} --no-publish",
        before=("python -m ci lock --source fa --output newest.json",),
        marks=NVCC | NETWORK,
        own_cache=False,
    ),
    "python -m ci fetch": Run(says="everything is at hand", marks=NETWORK, own_cache=False),
    # docs/building.md
    "python -m ci plan": Run(says=r"total: \d+ units"),
    'python -m ci plan --models "gpt-oss gemma3"': Run(says=r"profile models\.gemma3\.gptoss[\s\S]*total: \d+ units"),
    "python -m ci plan --pin head": Run(says=r"sources 0251105[\s\S]*total: \d+ units"),
    "python -m ci measure --costs": Run(says=r"common +\d+ +\d+"),
    "python -m ci wheel": Run(says="sha256", adds=f"{SMOKE} --no-publish", marks=NVCC, own_cache=False),
    "python -m ci build --output build/artifacts": Run(says="artifact", adds=SMOKE, marks=NVCC, own_cache=False),
    "pip install .": Run(
        says=r"flash-attn3 3\.0\.0",
        then=('"$DOCS_VENV"/bin/flash-attn3 --version',),
        environ={"PIP_NO_DEPS": "1", "FLASH_ATTN3_PROFILE": "smoke", "TORCH_CUDA_ARCH_LIST": "12.1"},
        marks=NVCC | NETWORK,
        own_cache=False,
    ),
    # docs/ci.md
    "python -m ci matrix --profile full": Run(says="runner hours"),
    "python -m ci assemble build/artifacts/* --output wheels --no-publish && python -m ci verify wheels/*.whl": Run(
        says="pass", before=("rm wheels/*.whl", SMOKE_PARTS), marks=NVCC, own_cache=False
    ),
    "flash-attn3 hub publish --hub hub WHEEL && flash-attn3 hub export --hub hub site": Run(
        says="exported to site", puts={"WHEEL": "wheels/*.whl"}, then=("test -f site/www/simple/index.html",)
    ),
    # docs/hub.md
    "flash-attn3 hub publish --repo my-lab/attention wheels/*.whl": Run(says=r"my-lab/attention +revision"),
    "flash-attn3 hub list": Run(says=r"varunneal/flash-attention-3 +fa3", before=(PUBLISH,)),
    "flash-attn3 hub show varunneal/flash-attention-3": Run(says="build/torch-cuda: ", before=(PUBLISH,)),
    "flash-attn3 hub check": Run(says="ok: generation 1", before=(PUBLISH,)),
    "flash-attn3 hub remove my-lab/attention": Run(
        says="generation 2",
        before=("flash-attn3 hub publish --repo my-lab/attention wheels/*.whl",),
        then=("! flash-attn3 hub show my-lab/attention",),
    ),
    "flash-attn3 hub gc": Run(says="removed 0 objects", before=(PUBLISH,)),
    KEYGEN: Run(says="private key", then=("test -s ~/.config/hub-key.pub",)),
    "export FLASH_ATTN3_SIGNING_KEY=~/.config/hub-key": Run(
        says=r"signed by [0-9a-f]{16}", before=(KEYGEN,), then=(PUBLISH, "flash-attn3 hub list")
    ),
    "export FLASH_ATTN3_TRUSTED_KEYS=ed25519:...": Run(
        says=r"is not signed[\s\S]*ok: generation 2",
        puts={"ed25519:...": "$(grep -o 'ed25519:.*' ~/.config/hub-key.pub)"},
        before=(KEYGEN, PUBLISH),
        then=("! flash-attn3 hub check", "flash-attn3 hub sign --key ~/.config/hub-key", "flash-attn3 hub check"),
    ),
    "flash-attn3 hub export DIR": Run(
        says="exported to DIR", before=(PUBLISH,), then=("test -f DIR/nginx.conf && test -f DIR/www/simple/index.html",)
    ),
    "flash-attn3 hub rollback": Run(
        says="generation 3 holds",
        before=(PUBLISH, "flash-attn3 hub publish --repo my-lab/attention wheels/*.whl"),
        then=("! flash-attn3 hub show my-lab/attention",),
    ),
    "flash-attn3 hub prune --keep 3": Run(says="generation 1", before=(PUBLISH,)),
    "flash-attn3 hub gc --keep 1": Run(says="removed 0 objects", before=(PUBLISH,)),
    "flash-attn3 hub nginx --listen 8080 > hub-nginx.conf": Run(
        says="published", before=(PUBLISH,), then=("grep -q 'listen 8080;' hub-nginx.conf",)
    ),
    "flash-attn3 run -- COMMAND": Run(
        says="served by flash_attn3_sm121", files={"chat_cli.py": CHAT_CLI}, puts={"COMMAND": "python chat_cli.py"}
    ),
    # docs/performance.md
    "flash-attn3 bench --html report.html": Run(
        says="against dense-mask", adds=SHORT_BENCH, then=("grep -q svg report.html",)
    ),
    "flash-attn3 bench --json today.json": Run(
        says="against dense-mask", adds=SHORT_BENCH, then=("python -m json.tool today.json > /dev/null",)
    ),
    "flash-attn3 bench --compare today.json other.json": Run(
        says="train-causal-d64",
        before=(f"flash-attn3 bench --json today.json {SHORT_BENCH}", "cp today.json other.json"),
    ),
    "flash-attn3 bench --seconds 3": Run(says="against dense-mask", adds="--workload train-causal-d64 --backend sdpa"),
    "flash-attn3 bench --overhead": Run(says="our layer"),
    "flash-attn3 bench --roofline gb10": Run(says="A prediction on paper"),
    # docs/security.md
    "python -m zipfile -e WHEEL opened": Run(
        says="^$", puts={"WHEEL": "wheels/*.whl"}, then=("test -f opened/flash_attn3_sm121/lib/provenance.json",)
    ),
    # docs/serving.md
    TOKEN: Run(says="600", then=("test $(wc -c < ~/.config/hub-token) -gt 40", "stat -c %a ~/.config/hub-token")),
    "flash-attn3 hub serve --host 0.0.0.0 --token-file ~/.config/hub-token": Serve(before=(PUBLISH, TOKEN)),
    'pip install "$(ls wheels/*.whl)[hub]"': Run(
        says=r"flash-attn3 3\.0\.0",
        before=(SMOKE_WHEEL,),
        then=('"$DOCS_VENV"/bin/flash-attn3 --version',),
        marks=NVCC | NETWORK,
        own_cache=False,
    ),
}

# In a block of commands, and not run by tests/docs: the command, and why, or what runs it instead.
NOT_RUN: dict[str, str] = {
    "make wheel && pip install wheels/flash_attn3_sm121-*.whl": "make fresh",
    "make wheel": "make fresh",
    "make test": "make fresh",
    "make fresh": "an hour; a job of ci.yml",
    "flash-attn3 bench": "with --quick, --html and --json",
    "python -m ci lock --source fa --output newest.json": "before `wheel --lock newest.json`",
    "python -m ci assemble build/artifacts/*": "with --output, and verified",
    "python -m ci verify wheels/*.whl": "behind `assemble`",
    "python -m ci verify WHEEL": "behind `assemble`",
    "make lint": "a job of ci.yml",
    "make lint-ci": "a job of ci.yml",
    "make ci-local": "compiles for both platforms, a quarter of an hour",
    "python -m ci compare --to-cuda 13.5 --profile smoke --archs 12.1": "fetches a second compiler; tests/toolchain",
    "python -m ci compare --to-pin head --profile smoke --archs 12.1": "sources that need git; docs/results/pins.md",
    "python -m ci reproduce": "two whole builds with cold caches",
    "python -m ci measure --sample 4": "compiles upstream's own files, hours; docs/results/ has what it found",
    "git clone --recurse-submodules https://github.com/Dao-AILab/flash-attention fa": "a gigabyte; `fa` is its result",
    "pre-commit install": "changes the clone's hooks",
    "flash-attn3 hub pull http://HOST:8765": "tests/hub_server/test_pull.py",
    "gh attestation verify WHEEL --repo OWNER/REPO": "needs a release on GitHub",
    "make test-gpu WHEEL=wheels/NAME.whl": "needs a GPU",
    "make test-gpu WHEEL=wheels/NAME.whl PROXY=1": "needs a GPU",
    "python -m ci gpu-test --wheel W.whl --out DIR --stage numerics --sample 5": "needs a GPU",
    "python -m ci gpu-test --wheel W.whl --out DIR --device cpu --sample 50": "tests/prove/test_gpucheck.py",
    "python3 -m venv ~/chat-page && . ~/chat-page/bin/activate": "the tests have an environment already",
    "pip install -r examples/nanochat_web/requirements.txt": "requirements-dev.txt has the same pins",
    "python examples/nanochat_web/measure.py --nanochat ~/nanochat": "tests/nanochat_web",
    "python examples/nanochat_web/serve.py --nanochat ~/nanochat": "tests/nanochat_web",
    "python examples/nanochat_web/serve.py --nanochat ~/nanochat --allow-host school.example": "tests/nanochat_web",
    'flash-attn3 run -- .venv/bin/python -m scripts.chat_cli -i sft -p "Why is the sky blue?"': "README's line is run",
    "curl -N -H 'content-type: application/json' http://127.0.0.1:8000/chat/completions "
    """-d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0.8, "top_k": 50}'""": (
        "tests/nanochat_web"
    ),
}


def choose(kind: type, *, compiles: bool) -> list[object]:
    """The table's commands of a kind, with the markers that they ask for: those that compile, or the others."""
    return [
        pytest.param(command, how, id=command[:60], marks=[getattr(pytest.mark, mark) for mark in sorted(how.marks)])
        for command, how in TABLE.items()
        if isinstance(how, kind) and ("nvcc" in how.marks) == compiles
    ]
