"""Upstream's sources: fetched by any of several routes, each proven equal to the lock's git trees."""

from ci.sources.fetch import SourceTree, fetch

__all__ = ["SourceTree", "fetch"]
