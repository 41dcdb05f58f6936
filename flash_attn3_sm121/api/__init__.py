"""What people call: the public functions, torch ops, and the ways into transformers and torch."""
