"""The CUDA toolchain: pinned packages or an installed toolkit, resolved to paths and a fingerprint."""

from ci.toolchain.model import Toolchain

__all__ = ["Toolchain"]
