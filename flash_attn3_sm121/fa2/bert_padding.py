"""`flash_attn.bert_padding`: between padded rows and packed tokens. Plain torch operations, all differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """The rows of `input` at `indices`, along its first dimension."""
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """A tensor of `first_axis_dim` rows with `values` at `indices`, and zeros elsewhere."""
    return values.new_zeros(first_axis_dim, *values.shape[1:]).index_copy(0, indices, values)


def index_first_axis_residual(input: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `input` at `indices`, and `input` itself."""
    return input.index_select(0, indices), input


def _bounds(lengths: Tensor) -> tuple[Tensor, int]:
    """(where each sequence starts, with the total behind; the longest length)."""
    ends = lengths.cumsum(0, dtype=torch.int32)
    return torch.nn.functional.pad(ends, (1, 0)), int(lengths.max())


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Pack the tokens that a mask keeps.

    Args:
        hidden_states: (b, s, ...).
        attention_mask: (b, s), 1 or True for a token, 0 for padding.
        unused_mask: (b, s), 1 for tokens that are kept as well but not counted as used.

    Returns:
        (tokens (total, ...), their indices in the flat b * s, cu_seqlens (b + 1,) int32, the longest length, the
        number of used tokens of each row as int32).
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    cu_seqlens, longest = _bounds(kept.sum(dim=-1, dtype=torch.int32))
    indices = kept.flatten().nonzero().flatten()
    used = attention_mask.sum(dim=-1, dtype=torch.int32)
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, longest, used


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Pack rows that hold several sequences each, one behind the other, with padding at the end.

    Args:
        hidden_states: (b, s, ...).
        attention_mask_in_length: (b, s), the lengths of a row's sequences in its first places, zeros behind them.

    Returns:
        (tokens (total, ...), their indices in the flat b * s, cu_seqlens over all sequences, the longest length).
    """
    filled = attention_mask_in_length.sum(dim=-1, keepdim=True)
    places = torch.arange(attention_mask_in_length.shape[-1], device=filled.device)
    indices = (places < filled).flatten().nonzero().flatten()
    lengths = attention_mask_in_length.flatten()
    cu_seqlens, longest = _bounds(lengths[lengths != 0])
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, longest


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse of `unpad_input`: (total, ...) tokens as (batch, seqlen, ...), zeros where there was padding."""
    padded = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return padded.view(batch, seqlen, *hidden_states.shape[1:])
