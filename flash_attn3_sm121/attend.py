"""The way every public function takes: a plain tensor without gradients goes straight to the engine.

Everything else (autograd, torch.compile, export, fake tensors, dispatch modes) goes through the functional ops of
`ops.py`, which say what they return before they run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flash_attn3_sm121 import ops
from flash_attn3_sm121.call import ForwardArgs
from flash_attn3_sm121.engine import engine

Window = Sequence[int | Tensor | None]
ops.register()


def is_plain(q: Tensor) -> bool:
    """Whether nobody watches: no compiler, no fake or wrapped tensors, no dispatch mode."""
    return (
        not torch.compiler.is_compiling()
        and (type(q) is Tensor or type(q) is torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
        and not q.is_meta
    )


def window_of(window_size: Window) -> tuple[int, int]:
    left, right = window_size
    if isinstance(left, Tensor):
        left = int(left)
    if isinstance(right, Tensor):
        right = int(right)
    return -1 if left is None else left, -1 if right is None else right


def length_of(value: int | Tensor | None, packed: Tensor) -> int | None:
    """A bound as an int. While compiling a tensor has no value yet: the packed length bounds it just as well."""
    if isinstance(value, Tensor):
        return packed.shape[0] if torch.compiler.is_compiling() else int(value)
    return value


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does for scaled_dot_product_attention: fp32 goes down to the autocast dtype."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(dtype) if tensor.dtype == torch.float32 else tensor for tensor in tensors)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    qv: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    page_table: Tensor | None = None,
    kv_batch_idx: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    s_aux: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Attention that writes nothing but its result; differentiable in q, k, v and s_aux."""
    if softmax_scale is None:
        softmax_scale = (q.shape[-1] + (0 if qv is None else qv.shape[-1])) ** -0.5
    wants_grad = torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad or (s_aux is not None and s_aux.requires_grad)
    )
    left, right = window_size
    if wants_grad or not is_plain(q):
        out, lse = torch.ops.flash_attn3_sm121.forward(
            *(q, k, v, qv, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k),
            *(page_table, kv_batch_idx, leftpad_k, q_descale, k_descale, v_descale, s_aux),
            *(softmax_scale, causal, left, right, attention_chunk, softcap),
            *(scheduler_metadata, num_splits, pack_gqa, deterministic, sm_margin),
        )
        return out, lse, None, None
    return engine().forward(
        ForwardArgs(
            q=q,
            k=k,
            v=v,
            qv=qv,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            seqused_q=seqused_q,
            seqused_k=seqused_k,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
            page_table=page_table,
            kv_batch_idx=kv_batch_idx,
            leftpad_k=leftpad_k,
            q_descale=q_descale,
            k_descale=k_descale,
            v_descale=v_descale,
            s_aux=s_aux,
            softmax_scale=softmax_scale,
            causal=causal,
            window_left=left,
            window_right=right,
            attention_chunk=attention_chunk,
            softcap=softcap,
            scheduler_metadata=scheduler_metadata,
            num_splits=num_splits,
            pack_gqa=pack_gqa,
            sm_margin=sm_margin,
        )
    )
