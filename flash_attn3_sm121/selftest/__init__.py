"""`flash-attn3 selftest`: every feature on this very device against plain fp64 arithmetic on the CPU."""
