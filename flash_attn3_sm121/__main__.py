"""`python -m flash_attn3_sm121` is `flash-attn3`."""

import sys

from flash_attn3_sm121.cli import main

sys.exit(main())
