"""The build harness: facts -> plan -> sources -> objects -> family libraries -> wheel. `python -m ci --help`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the clone
