"""python -m examples.nanochat_web --nanochat ~/nanochat"""

import sys

from .cli import main

sys.exit(main())
