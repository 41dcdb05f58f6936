"""Upstream's interface file, found at run time, checked against the pin, and run over an op of our choice.

No line of it is in this package: it is read from a checkout (FA3_SOURCE) or from the harness's content cache.
"""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path

from flash_attn3_sm121.errors import SourceError

PINNED_BLOB = "1158ee02ad27e77531d98fae088cccacb23f3707"  # git's id of hopper/flash_attn_interface.py at the pin
FILE = Path("hopper") / "flash_attn_interface.py"


def blob_id(data: bytes) -> str:
    """Git's name for a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def candidates(environ: Mapping[str, str]) -> Iterable[Path]:
    """Where the file may lie, best first."""
    if environ.get("FA3_SOURCE"):
        yield Path(environ["FA3_SOURCE"]) / FILE
    if environ.get("FA3_CACHE"):
        cache = Path(environ["FA3_CACHE"])
    else:
        base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".cache")
        cache = Path(base) / "flash-attn3-sm121"
    yield from sorted((cache / "sources").glob(f"*/{FILE}"))


def find(environ: Mapping[str, str] | None = None) -> Path:
    """The pinned file.

    Raises:
        SourceError: it is in none of the places; the message lists them.
    """
    seen = []
    for path in candidates(os.environ if environ is None else environ):
        if not path.is_file():
            seen.append(f"{path}: not there")
            continue
        blob = blob_id(path.read_bytes())
        if blob == PINNED_BLOB:
            return path
        seen.append(f"{path}: expected blob {PINNED_BLOB[:12]}, found {blob[:12]}")
    looked = "".join(f"\n  {line}" for line in seen) or "\n  nowhere: FA3_SOURCE is not set and the cache is empty"
    raise SourceError(
        f"upstream's interface file at the pinned commit is not at hand; looked at:{looked}",
        hint="FA3_SOURCE=<a flash-attention checkout at the pinned commit>, or `python -m ci fetch` in a clone",
    )


def load(path: Path, ops: object) -> types.ModuleType:
    """The file as a module whose kernels are `ops` (anything with fwd and bwd)."""
    names = ("flash_attn_3", "flash_attn_3._C")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    module = types.ModuleType("upstream_interface")
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    module.__dict__["flash_attn_3_cuda"] = ops
    return module
