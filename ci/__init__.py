"""The build harness: facts -> plan -> sources -> objects -> family libraries -> wheel. `python -m ci --help`."""
