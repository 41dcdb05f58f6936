"""The order of the ops' arguments is written once, in the schemas; what is made from it fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.backend import use_backend
from flash_attn3_sm121.dispatch.classes import class_of, decode_class, dense_class, tensors_of

FWD = schemas.PUBLIC["fwd"]
SCALARS: dict[str, Any] = {
    "causal": True, "window_left": 3, "window_right": 0, "attention_chunk": 5, "softcap": 2.0, "num_splits": 7,
    "pack_gqa": False,
}  # fmt: skip


def test_every_argument_of_an_op_is_a_field() -> None:
    forward, backward = set(ForwardArgs.__slots__), set(BackwardArgs.__slots__)
    assert set(schemas.FWD_FIELDS) | {"s_aux"} == set(schemas.NATIVE_FWD_FIELDS) == forward
    assert set(schemas.FORWARD_FIELDS) - forward == {"deterministic"}
    assert set(schemas.APPEND_FIELDS) <= forward
    assert set(schemas.BACKWARD_FIELDS) | {"qv"} == backward
    assert set(schemas.BWD_FIELDS) - backward == {"dq", "dk", "dv"}
    assert (*schemas.BWD_FIELDS, "dlse") == schemas.NATIVE_BWD_FIELDS, "ours stand behind upstream's"


def test_a_caller_puts_each_argument_at_its_place() -> None:
    seen: list[tuple[Any, ...]] = []
    call = schemas.caller(lambda *values: seen.append(values), FWD, "v", "q", "k", "softcap", num_splits=9)
    call("v", "q", "k", 1.5)
    expected = {**schemas.defaults(FWD), "q": "q", "k": "k", "v": "v", "softcap": 1.5, "num_splits": 9}
    assert seen == [tuple(expected[name] for name in schemas.argument_names(FWD))]
    with pytest.raises(ValueError, match=r"unknown arguments \['w'\], arguments without"):
        schemas.caller(print, FWD, "w")


def test_defaults_are_read_from_the_schema() -> None:
    defaults = schemas.defaults(FWD)
    assert (defaults["window_size_left"], defaults["softcap"], defaults["is_causal"]) == (-1, 0.0, False)
    assert defaults["pack_gqa"] is None and "q" not in defaults


@pytest.mark.parametrize("forced", [None, "sdpa"])
def test_the_fast_paths_make_the_key_that_the_engine_makes(forced: str | None) -> None:
    q, k, v = torch.zeros(2, 3, 4, 16), torch.zeros(2, 8, 2, 16).bfloat16(), torch.zeros(2, 8, 2, 24).half()
    dense = ForwardArgs(q=q, k=k, v=v, softmax_scale=1.0, **SCALARS)
    numbers = torch.zeros(2, dtype=torch.int32)
    table = torch.zeros(2, 4, dtype=torch.int64)
    with use_backend(forced):
        assert class_of(dense, tensors_of(dense)) == dense_class(q, k, v, 16, tuple(SCALARS.values()))
        for new, paged, row in ((None, None, None), (q.double(), None, numbers.bool()), (q, table, None)):
            decode = ForwardArgs(
                q=q, k=k, v=v, seqused_k=numbers, k_new=new, v_new=new, page_table=paged, kv_batch_idx=row,
                softmax_scale=1.0, **SCALARS,
            )  # fmt: skip
            key = decode_class(q, k, v, numbers, new, new, paged, row, 16, tuple(SCALARS.values()))
            assert class_of(decode, tensors_of(decode)) == key
