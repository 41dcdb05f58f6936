"""`flash-attn3 bench`: every attention this machine has, side by side in one run, checked before it is timed."""
