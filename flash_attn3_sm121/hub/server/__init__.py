"""`flash-attn3 hub serve`: one hub folder as a Hugging Face endpoint, a pip index and a page. Read-only."""

from __future__ import annotations
