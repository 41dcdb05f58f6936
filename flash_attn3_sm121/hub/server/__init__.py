"""`flash-attn3 hub serve`: sends the tree that publishing wrote. aiohttp does the HTTP, this package what goes out."""
