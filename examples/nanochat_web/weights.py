"""What a checkpoint file of torch holds, without torch, and without running anything that is in it."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

LARGEST_INDEX = 16 << 20


class Unreadable(Exception):
    """The file is not whole; the message says how that is seen."""


class _Inert:
    """Stands for every class and function that the file names."""

    def __new__(cls, *_args: object, **_more: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass


class _Names(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return collections.OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, _where: Any) -> Any:
        return None


def tensor_names(path: Path) -> frozenset[str]:
    """The names of the tensors in a file that `torch.save` wrote; an empty set where it holds something else.

    Raises:
        Unreadable: it is empty or cut off.
    """
    size = path.stat().st_size
    if size == 0:
        raise Unreadable("it is empty")
    try:
        with zipfile.ZipFile(path) as archive:
            index = next((entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")), None)
            if index is None or index.file_size > LARGEST_INDEX:
                return frozenset()
            data = archive.read(index)
    except zipfile.BadZipFile:
        raise Unreadable(f"it ends after {size:,} bytes without the table of contents that torch writes last") from None
    try:
        found = _Names(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError):
        return frozenset()
    if not isinstance(found, dict):
        return frozenset()
    return frozenset(str(name).removeprefix("_orig_mod.") for name in found)


def parts(names: frozenset[str]) -> frozenset[str]:
    """The modules and parameters in the names of tensors: `transformer.h.0.attn.c_q.weight` has four."""
    words = {word for name in names for word in name.split(".")}
    return frozenset(word for word in words if not word.isdecimal() and word not in ("weight", "bias"))
