"""Proof about a built wheel, read from the wheel alone: gather (read), judge (compare), report (tell)."""
