"""What depends on the sentence only is computed once per sentence and not put in another order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache


def keep_sentences_in_place(*arguments: Any) -> None:
    """Let the caches among some arguments leave the keys and values of the source where they are.

    Beams change places within their sentence, and what they read of the source is the same.
    """
    for argument in arguments:
        for cache in argument.values() if isinstance(argument, dict) else ():
            if isinstance(cache, EncoderDecoderCache):
                cache.cross_attention_cache.reorder_cache = _stay


def _stay(beams: Tensor) -> None:
    """The order stays as it is."""


def is_first_step(inputs: dict[str, Any]) -> bool:
    """Whether a decoder's inputs have a cache that knows nothing of the source yet."""
    caches = [cache for cache in inputs.values() if isinstance(cache, EncoderDecoderCache)]
    return bool(caches) and not any(caches[0].is_updated.values())


@contextlib.contextmanager
def once_per_sentence(decoder: nn.Module, states: Tensor, beams: int) -> Iterator[None]:
    """Within it, a decoder projects the encoder's states once for all beams of a sentence.

    Args:
        states: the encoder's, as they are given to the decoder `[B * beams, T, D]`, beams adjacent
    """
    first = states[::beams]
    repeated = first.unsqueeze(1).expand(-1, beams, *first.shape[1:]).reshape_as(states)
    if beams == 1 or not bool((repeated == states).all()):
        yield
        return
    chosen: list[nn.Module] = []

    def one(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not inputs or inputs[0] is not states:
            return None
        chosen.append(module)
        return (first, *inputs[1:])

    def every(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not chosen or chosen[-1] is not module:
            return None
        chosen.pop()
        return output.repeat_interleave(beams, dim=0)

    hooks = []
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(one))
            hooks.append(module.register_forward_hook(every))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
