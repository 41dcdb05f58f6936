"""`flash-attn3 hub ...`: for each subcommand `configure_<name>`, which adds its options, and its function."""
