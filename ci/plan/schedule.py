"""How many compilers run at once: never more than cores, and never more than memory holds. Pure."""

from __future__ import annotations

from collections.abc import Sequence

MEMORY_MARGIN_GB = 1.0  # left to everything else on the machine


def job_count(needs_gb: Sequence[float], *, cores: int, memory_gb: float, wanted: int | None) -> int:
    """An honest bound for messages: the largest n for which the n hungriest units fit together; at least one."""
    limit = max(1, min(wanted or cores, cores if wanted is None else wanted))
    hungriest = sorted(needs_gb, reverse=True)
    count = 0
    used = 0.0
    for need in hungriest[:limit]:
        used += need
        if used > memory_gb - MEMORY_MARGIN_GB:
            break
        count += 1
    if needs_gb and len(hungriest) < limit and count == len(hungriest):
        return count
    return max(1, count)


def next_unit(waiting: Sequence[float], *, running: Sequence[float], limit: int, free_gb: float) -> int | None:
    """Index of the unit to start now, or None to wait. `free_gb` is what the machine has free beside the running ones.

    Running compilers have not reached their peak yet, so their whole need counts against the memory at the start of the
    build or the free memory now, whichever is less. One unit always runs, however little memory there is.
    """
    if not waiting or len(running) >= limit:
        return None
    if not running:
        return 0
    room = free_gb - MEMORY_MARGIN_GB
    for index, need in enumerate(waiting):
        if need <= room:
            return index
    return None
