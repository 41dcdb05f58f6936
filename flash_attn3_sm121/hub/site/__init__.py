"""The finished tree that publishing writes: what is in it (compose), where it lies (tree), how an address is found."""
