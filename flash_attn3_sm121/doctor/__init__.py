"""`flash-attn3 doctor`: what is wrong with this machine, and the command that fixes it."""
