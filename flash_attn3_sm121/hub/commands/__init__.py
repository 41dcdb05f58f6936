"""`flash-attn3 hub ...`: one module a subcommand, each with configure(parser) and run(args) -> int."""
