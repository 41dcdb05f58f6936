"""The counts that docs/performance.md rests on: what the fallback on CUDA launches and moves."""

from __future__ import annotations

import json

import torch

from flash_attn3_sm121.bench import counts
from flash_attn3_sm121.bench.workloads import CUDA

WORKS = {work.name: work for work in CUDA}


def test_the_fallback_moves_no_more_than_a_dense_mask_and_never_waits() -> None:
    found = {(name, who): cells for name, who, *cells in counts.rows()}
    for (name, who), (launches, _, _, share, waits) in found.items():
        if who == "fallback":
            # Pages in e4m3 are copied, all that the table has.
            most, alone = (40, "13") if name == "paged-decode-fp8-cache" else (30, "1.5")
            assert waits == "0" and int(launches) <= most
            _, _, _, dense, _ = found.get((name, "dense-mask"), ("", "", "", alone, ""))
            assert float(share) <= 1.1 * float(dense), name


def test_what_is_counted() -> None:
    work = WORKS["decode-uniform"]

    def call(case: object) -> None:
        a = torch.empty(4, 8, device="meta")
        b = a.transpose(0, 1).expand(2, 8, 4) + 1  # one launch, 128 bytes read, 256 written
        b[:, :2].fill_(0)  # one more, 64 bytes read and written
        torch.empty(1, device="meta").item()

    assert counts.cost(work, call) == counts.Cost(launches=2, read=128 + 64, written=256 + 64, waits=1)


def test_a_dense_mask_waits_for_the_length_and_reads_every_row_to_it() -> None:
    one = counts.cost(WORKS["decode-ragged"], counts.dense_mask)
    assert one.waits == 1 and one.read >= 8 * 32768 * 8 * 128 * 2 * 2


def test_the_json_has_the_rows() -> None:
    data = json.loads(counts.to_json())
    assert [tuple(row) for row in data["rows"]] == counts.rows() and data["commit"]
