"""The CUDA toolchain: pinned packages or an installed toolkit, resolved to paths and a fingerprint."""

from ci.toolchain.headers import HeaderTree, torch_headers
from ci.toolchain.resolve import Toolchain, resolve

__all__ = ["HeaderTree", "Toolchain", "resolve", "torch_headers"]
