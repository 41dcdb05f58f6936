"""Family libraries: loading them, and the facts of their build."""
