"""`flash-attn3 doctor`: gather facts of this machine, judge them, and say the one command that mends each fault."""
