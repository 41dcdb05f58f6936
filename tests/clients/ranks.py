"""Two processes of one gloo group, for probes in which they share a sequence."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
Differences = dict[str, float]


def _work(rank: int, port: int, answers: Any, compare: Callable[[int], Differences]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    answers.put(compare(rank))
    dist.barrier()
    dist.destroy_process_group()


def print_largest(compare: Callable[[int], Differences]) -> None:
    """Print as JSON the larger of what `compare` finds as rank 0 and as rank 1, by name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers: Any = mp.get_context("fork").SimpleQueue()
    mp.start_processes(_work, (port, answers, compare), nprocs=WORLD, start_method="fork")
    both = [answers.get() for _ in range(WORLD)]
    print(json.dumps({name: max(one[name] for one in both) for name in both[0]}))
