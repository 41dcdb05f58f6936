"""The public functions, torch's ops, and the ways into transformers and torch."""
