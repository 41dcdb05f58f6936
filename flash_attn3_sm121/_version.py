"""The version of the Python side: upstream's release, then our own post-release number.

A wheel with machine code adds a local segment (pin, families, profile) at build time.
"""

__version__ = "3.0.0.post1"
UPSTREAM_VERSION = "3.0.0"
