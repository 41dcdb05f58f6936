"""Files from the package index that pip or uv is configured for: found by name, checked by sha256.

Only the standard library is used: the harness also runs inside pip's isolated build environments, where nothing can be
assumed. `pip download` is no way to get a source distribution, as it runs that project's build to read its metadata.
"""

from ci.index.config import IndexConfig, read_config
from ci.index.locate import Wanted
from ci.index.obtain import obtained, opened_ranges

__all__ = ["IndexConfig", "Wanted", "obtained", "opened_ranges", "read_config"]
