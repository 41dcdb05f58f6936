"""The subcommands. Each turns arguments into calls of `ci`'s modules, and results into text and an exit code."""
