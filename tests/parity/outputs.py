"""What a module of a fused model gave, and memory on the host's positions by its equation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from reference import Layer, Weights, linear
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel


def output_of(module: Any, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The first output of a module in a forward pass."""
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    found = seen[0]
    return found if isinstance(found, Tensor) else found[0]


def token_embeddings(bench: Any) -> Tensor:
    """E of the host alone."""
    weight = bench.model.host.model.encoder.embed_tokens.weight
    return weight[bench.batch["input_ids"]]


def pooled(p: Weights, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    """Query by query: sum_s softmax_s(W_q x . W_k h_s / sqrt(D)) h_s over real s."""
    q, k = linear(p, "align.q_proj", x), linear(p, "align.k_proj", memory)
    rows = []
    for b in range(x.shape[0]):
        real = mask[b].nonzero().squeeze(1)
        for t in range(x.shape[1]):
            scores = (k[b, real] * q[b, t]).sum(-1) / x.shape[-1] ** 0.5
            weights = scores.exp() / scores.exp().sum()
            rows.append((weights[:, None] * memory[b, real]).sum(0))
    return torch.stack(rows).view(*x.shape[:2], -1)


def encoder_of_host_tokens(tokenizer_dir: Path, width: int, directory: Path) -> Path:
    """A BERT that reads the host's own tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(width)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def check_decoder(bench: Any, encoded: Tensor, mask: Tensor) -> None:
    """Every decoder layer reads `encoded` [B, S', D] under `mask` [B, S']."""
    seen: list[tuple[Any, Tensor, Any]] = []
    layers = bench.model.host.model.decoder.layers
    hooks = [
        layer.register_forward_hook(
            lambda m, args, kwargs, out: seen.append(
                (m, args[0] if args else kwargs["hidden_states"], out)
            ),
            with_kwargs=True,
        )
        for layer in layers
    ]
    with torch.no_grad():
        output = bench.model(**bench.batch)
    for hook in hooks:
        hook.remove()
    assert encoded.dtype == torch.float64
    assert (output.encoder_last_hidden_state - encoded).abs().max() < 1e-10
    assert len(seen) == len(layers)
    for layer, x, found in seen:
        reference = Layer(dict(layer.state_dict()), 4, bench.pre_norm, {})
        found = found[0] if isinstance(found, tuple) else found
        assert (found - reference.decode(x, encoded, mask)).abs().max() < 1e-10
