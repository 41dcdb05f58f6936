"""`flash-attn3 bench`: every attention that this machine has, side by side in one run, checked before it is timed."""
