"""The local kernel hub: publish wheels, serve them as a kernel hub and a package index, override `get_kernel`."""

from __future__ import annotations
