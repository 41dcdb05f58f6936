"""Starts the page: python examples/nanochat_web/serve.py --nanochat ~/nanochat"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    # The folder of this package, not the package itself: its modules have plain names.
    sys.path[0] = str(HERE.parent)
    if importlib.util.find_spec("flash_attn3_sm121") is None:  # run from a clone, nothing installed
        sys.path.append(str(HERE.parents[1]))
    from nanochat_web.cli import main

    sys.exit(main())
