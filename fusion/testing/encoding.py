"""Checks of an encoder: its hidden states are what `layer` says, and unfrozen all of it trains."""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel

from fusion.encoders.auto import ONE_MEMORY
from fusion.encoders.part import EncoderPart
from fusion.testing.bench import Bench, kept
from fusion.testing.report import Failed, Skipped, apart
from fusion.testing.tiny import randomise

SMALLEST = 1e-6  # of the largest gradient: what is less is rounding
NO_GRADIENT = ("*k_proj.bias", "*key.bias")  # one number more for all keys changes no softmax


def hidden_states(bench: Bench) -> None:
    """Hidden states `[B, S, M]`: the embeddings' and every layer's, no two the same, the last last.

    A recipe's `layer` picks among them; -1 is read from `last_hidden_state`.
    """
    _, part, ids, mask = _encoder(bench)
    if part.config.model_type in ONE_MEMORY:
        raise Skipped("its hidden layers are shorter than the sentence; only the last is a memory")
    with torch.no_grad():
        output = part.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    last: Tensor = output.last_hidden_state
    found: tuple[Tensor, ...] = getattr(output, "hidden_states", None) or ()
    if len(found) != part.layers:
        raise Failed(
            f"with output_hidden_states=True it gives {len(found)} hidden states, and its config "
            f"says num_hidden_layers={part.layers - 1}",
            f"Give {part.layers} `hidden_states`: the embeddings' and every layer's",
        )
    real = mask.bool()
    for layer, states in enumerate((*found, last)):
        what = f"hidden_states[{layer}]" if layer < len(found) else "last_hidden_state"
        if states.shape != (*ids.shape, part.width) or not bool(states[real].isfinite().all()):
            raise Failed(
                f"{what} has shape {list(states.shape)}, or is not finite",
                f"It is [B, S, M], here {[*ids.shape, part.width]}; M is the config's hidden_size",
            )
    if not torch.allclose(found[-1][real], last[real], atol=1e-5):
        raise Failed(
            f"hidden_states[-1] differs by {apart(found[-1][real], last[real])} from "
            "last_hidden_state",
            "`hidden_states` are in order, the embeddings' first, and end in last_hidden_state",
        )
    for layer, states in enumerate(found):
        for before in range(layer):
            if torch.allclose(states[real], found[before][real], atol=1e-5):
                raise Failed(
                    f"hidden_states[{before}] and hidden_states[{layer}] are the same",
                    "Keep every layer's own output",
                )


def unfrozen(bench: Bench) -> None:
    """With `freeze: false`, a loss on its memory gives every parameter a gradient.

    Of transformers' own classes, those are excused that have none in the plain model either.
    """
    name, _, ids, mask = _encoder(bench)
    model = bench.compose(settings={"freeze": False, "layer": -1}).model
    part = model.encoder_parts[name]
    with kept(model):
        model.train()
        dead = _dead(part.model, part(ids, mask).states, mask)
    patterns = [*NO_GRADIENT, *bench.encoders[name].unused]
    dead = [one for one in dead if not any(fnmatch(one, pattern) for pattern in patterns)]
    if dead and (plain := _plain(part.model)) is not None:
        inner = plain.get_encoder() if plain.config.is_encoder_decoder else plain
        states = inner(input_ids=ids, attention_mask=mask).last_hidden_state
        excused = set(_dead(plain, states, mask))
        dead = [one for one in dead if one not in excused]
    if dead:
        raise Failed(
            f"not frozen, a loss on its memory gives no gradient to {', '.join(dead)}",
            "A tensor that is not used is not a parameter, and one that is fixed has "
            "requires_grad_(False); do not detach states. `EncoderChoice.unused` names those that "
            "must be there all the same, with the reason",
        )


def _encoder(bench: Bench) -> tuple[str, EncoderPart, Tensor, Tensor]:
    """The bench's encoder, and what it reads."""
    (name,) = bench.encoders
    ids, mask = (bench.batch[f"{name}_{kind}"] for kind in ("input_ids", "attention_mask"))
    return name, bench.start.model.encoder_parts[name], ids, mask


def _dead(model: PreTrainedModel, states: Tensor, mask: Tensor) -> list[str]:
    """Parameters to be trained that a loss on the real tokens' states gives no gradient."""
    real = states[mask.bool()]
    weights = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    (real * weights.to(real.dtype)).sum().backward()
    sizes = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return [name for name, size in sizes.items() if size <= SMALLEST * max(sizes.values())]


def _plain(model: PreTrainedModel) -> PreTrainedModel | None:
    """transformers' own model of its config, with random values; None: the class is another's."""
    config = model.config
    if not type(model).__module__.startswith("transformers.") or type(config) not in MODEL_MAPPING:
        return None
    plain: PreTrainedModel = AutoModel.from_config(config).train()
    randomise(plain)
    return plain
