import os
from pathlib import Path

COMPUTE_DTYPE = None


def get_experiment_dir() -> str:
    base = Path(os.environ["NANOCHAT_BASE_DIR"])
    root = os.environ.get("NANOCHAT_EXPERIMENTS_DIR") or base / "experiments"
    return str(Path(root) / os.environ.get("NANOCHAT_EXPERIMENT", "default"))
