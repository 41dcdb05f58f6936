"""The harness's subcommands: each a thin edge (arguments in, text and exit code out) over the modules of `ci`."""
