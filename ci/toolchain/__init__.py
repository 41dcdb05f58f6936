"""The CUDA toolchain: pinned packages or an installed toolkit, resolved to paths and a fingerprint."""

from ci.toolchain.model import Toolchain
from ci.toolchain.resolve import check_targets, machine, resolve, torch_headers

__all__ = ["Toolchain", "check_targets", "machine", "resolve", "torch_headers"]
