"""`pip install .` and `pip wheel .`: a thin way into the harness (ci/), which does the work.

FLASH_ATTN3_SKIP_CUDA=1 gives the pure-Python package. FLASH_ATTN3_PROFILE, FLASH_ATTN3_PIN, TORCH_CUDA_ARCH_LIST, JOBS
(or MAX_JOBS) and FA3_SOURCE mean what `make wheel PROFILE= PIN= ARCHS= JOBS=` and `--source` mean.
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

# A build front end does not put the project's folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ci.commands import frontend

setup(
    version=frontend.version(os.environ),
    packages=find_packages(include=["flash_attn3_sm121", "flash_attn3_sm121.*"]),
    cmdclass={"bdist_wheel": frontend.BdistWheel, "sdist": frontend.Sdist},
)
