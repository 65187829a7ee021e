"""One state of an encoder's memory per host token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion.errors import RecipeError, ShapeError
from fusion.glue.base import Place
from fusion.memory import Memory

ATTENTION, TOKENS = "attention", "tokens"


class Aligned(nn.Module):
    """H~: memory H_B with the host's positions, for methods that need a state per host token.

    `attention`: the mean of the memory under learned weights, one head,
    H~ = softmax((W_q x)(W_k H_B)^T D^-0.5) H_B, of which W_q [D, D] and W_k [D, M] have biases.
    Where x is token embeddings, it knows no positions: two equal tokens of a sentence get the same
    H~. `tokens`: H~ = H_B; the encoder reads the host's own tokens.

    With beams, x has k adjacent rows per sentence, read as k*T queries of one sentence.

    Shapes:  x [B*k, T, D], memory [B, S, M] -> [B*k, T, M]; S = T and k = 1 for `tokens`
    Raises:  RecipeError if kind is neither, or it is `tokens` outside the host's encoder;
             ShapeError if widths, lengths or padding are not what they should be
    Source:  ours; CTNMT (arXiv:1908.05672) and BiBERT (arXiv:2109.04588) read the host's tokens
    """

    def __init__(self, place: Place, kind: str) -> None:
        super().__init__()
        if kind not in (ATTENTION, TOKENS):
            raise RecipeError(f'align: "{ATTENTION}" or "{TOKENS}"; found {kind!r}')
        if kind == TOKENS and not place.site.startswith("encoder."):
            raise RecipeError(
                f"align: tokens is for sites of the host's encoder; at {place.site}: {ATTENTION}"
            )
        self.kind = kind
        self.width, self.memory_width = place.width, place.memory_width
        if kind == ATTENTION:
            self.q_proj = nn.Linear(place.width, place.width)
            self.k_proj = nn.Linear(place.memory_width, place.width)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if x.shape[-1] != self.width or memory.states.shape[-1] != self.memory_width:
            raise ShapeError(
                f"glue was built for host width {self.width} and memory width {self.memory_width}; "
                f"got {x.shape[-1]} and {memory.states.shape[-1]}"
            )
        return self._pooled(x, memory) if self.kind == ATTENTION else _token_by_token(x, memory)

    def _pooled(self, x: Tensor, memory: Memory) -> Tensor:
        keys, states = self._keys_states(memory)
        sentences, rows = states.shape[0], x.shape[0]
        if rows % sentences:
            raise ShapeError(f"{rows} rows of host states for {sentences} sentences of memory")
        queries = self.q_proj(x).reshape(sentences, -1, self.width) * self.width**-0.5
        scores = torch.matmul(queries, keys.transpose(-1, -2))
        if memory.mask is not None:
            lowest = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~memory.mask[:, None, :], lowest)
        pooled = torch.matmul(torch.softmax(scores, dim=-1), states)
        return pooled.reshape(rows, -1, self.memory_width)

    def _keys_states(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """W_k H_B and H_B; kept with a memory that is read step after step."""
        key = f"{id(self)}:aligned"
        if memory.reusable and key in memory.projected:
            return memory.projected[key]
        states = memory.states.to(self.k_proj.weight.dtype)
        pair = self.k_proj(states), states
        if memory.reusable:
            memory.projected[key] = pair
        return pair


def _token_by_token(x: Tensor, memory: Memory) -> Tensor:
    """Memory as it is, once its lengths are the host's."""
    mine, theirs = memory.mask, memory.source_mask
    same = x.shape[:2] == memory.states.shape[:2]
    if same and mine is not None and theirs is not None:
        same = torch.equal(mine, theirs.bool())
    elif same and (mine is None) != (theirs is None):
        padded = mine if mine is not None else theirs
        same = padded is None or bool(padded.all())
    if not same:
        raise ShapeError(
            f"align: tokens needs an encoder with the host's own tokenizer: the host has "
            f"{_lengths(x, theirs)} tokens, the memory {_lengths(memory.states, mine)}; "
            "align: attention works with any"
        )
    return memory.states.to(x.dtype)


def _lengths(states: Tensor, mask: Tensor | None) -> list[int]:
    """Real tokens per sentence, of the first few."""
    if mask is None:
        return [states.shape[1]] * min(4, states.shape[0])
    return [int(n) for n in mask[:4].sum(dim=1)]
