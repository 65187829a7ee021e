"""Memory as embeddings against its equation in float64, and the layer that is drawn."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import glue_at
from outputs import encoder_of_host_tokens, output_of, pooled, token_embeddings
from reference import linear
from torch import Tensor

from fusion.composition import compose
from fusion.errors import RecipeError
from fusion.glue.base import Place
from fusion.glue.embedding import EncoderEmbedding
from fusion.memory import Memory


def expected(bench: Any, memory: Tensor, align: str, mode: str) -> Tensor:
    p = dict(glue_at(bench, "encoder.embeddings").state_dict())
    own = token_embeddings(bench)
    read = pooled(p, own, memory, bench.memory_mask) if align == "attention" else memory
    read = linear(p, "project", read)
    return own + read if mode == "add" else read


def bench_of(
    make_bench: Any, make_bert: Any, tokenizer_dir: Path, folder: Path, **options: Any
) -> Any:
    """A bench with an encoder for the alignment; `layer` and `width` are the encoder's."""
    width, layer, norm = (
        options.pop(k, d) for k, d in (("width", 24), ("layer", -1), ("norm", "post"))
    )
    source = make_bert(width)
    if options["align"] == "tokens":
        source = encoder_of_host_tokens(tokenizer_dir, width, folder / "bert")
    encoders = {"bert": {"source": str(source), "layer": layer}}
    return make_bench(norm=norm, encoders=encoders, method="embedding", **options)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("width", [24, 32])
@pytest.mark.parametrize("align", ["attention", "tokens"])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_the_hosts_encoder_reads_what_the_equation_says(
    make_bench: Any,
    make_bert: Any,
    tokenizer_dir: Path,
    tmp_path: Path,
    norm: str,
    width: int,
    align: str,
    mode: str,
) -> None:
    bench = bench_of(
        make_bench,
        make_bert,
        tokenizer_dir,
        tmp_path,
        norm=norm,
        width=width,
        align=align,
        mode=mode,
    )
    found = output_of(bench.model.host.model.encoder.embed_tokens, bench.model, bench.batch)
    assert found.dtype == torch.float64
    assert (found - expected(bench, bench.memory, align, mode)).abs().max() < 1e-10


@pytest.mark.parametrize("align", ["attention", "tokens"])
@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("layer", ["all", "mix"])
def test_evaluation_reads_the_mean_of_the_last_layers_and_training_one_of_them(
    make_bench: Any,
    make_bert: Any,
    tokenizer_dir: Path,
    tmp_path: Path,
    align: str,
    last: int,
    layer: str,
) -> None:
    bench = bench_of(
        make_bench, make_bert, tokenizer_dir, tmp_path, align=align, last=last, layer=layer
    )
    hidden = bench.model.encoders["bert"](
        bench.batch["bert_input_ids"], bench.batch["bert_attention_mask"]
    ).states
    site = bench.model.host.model.encoder.embed_tokens
    found = output_of(site, bench.model, bench.batch)
    mean = sum(hidden[-1 - i] for i in range(last)) / last
    assert (found - expected(bench, mean, align, "add")).abs().max() < 1e-10

    module, drawn = glue_at(bench, "encoder.embeddings"), set()
    module.train()
    for seed in range(8):
        module.draw(random.Random(seed))
        found = output_of(site, bench.model, bench.batch)
        apart = [
            (found - expected(bench, hidden[-1 - i], align, "add")).abs().max().item()
            for i in range(last)
        ]
        assert min(apart) < 1e-10
        drawn.add(apart.index(min(apart)))
    assert drawn == set(range(last))


def test_every_layer_is_drawn_as_often_once_per_batch() -> None:
    place = Place("encoder.embeddings", 4, 2, 4, memory_layers=5)
    module = EncoderEmbedding(place, last=4, align="tokens").train()
    layers = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 4)
    rng, counts = random.Random(1), Counter[float]()
    for _ in range(2000):
        module.draw(rng)
        picked = {
            float(module._picked(Memory(layers[-1], None, layers=layers)).states[0, 0, 0])
            for _ in range(2)
        }
        assert len(picked) == 1
        counts[picked.pop()] += 1
    assert set(counts) == {1.0, 2.0, 3.0, 4.0}  # never the encoder's own embeddings
    assert all(count / 2000 == pytest.approx(0.25, abs=0.04) for count in counts.values())


def test_a_kept_memory_gives_the_same_step_after_step() -> None:
    torch.manual_seed(0)
    place = Place("decoder.embeddings", 4, 2, 6, memory_layers=3)
    module = EncoderEmbedding(place, last=2).double().eval()
    layers = torch.randn(3, 2, 3, 6, dtype=torch.float64)
    x = torch.randn(8, 3, 4, dtype=torch.float64)  # 4 beams
    mask = torch.tensor([[True, True, True], [True, False, False]])
    whole = module(x, lambda: x, Memory(layers[-1], mask, layers=layers))
    kept = Memory(layers[-1], mask, reusable=True, layers=layers)
    steps = [module(x[:, t : t + 1], lambda t=t: x[:, t : t + 1], kept) for t in range(3)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "concatenate"}, r"mode: found 'concatenate'; should be 'add' or 'replace'"),
        ({"start": "zero"}, r"start: found 'zero'; should be 'paper' or 'neutral'"),
        ({"start": "neutral", "mode": "replace"}, "keeps the host's embeddings: mode: add"),
        ({"last": 3}, r"0 \(off\) to the encoder's 2 layers; found 3"),
        ({"last": -1}, "found -1"),
    ],
)
def test_options_that_cannot_be_are_refused(
    make_recipe: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        compose(make_recipe(method="embedding", encoder={"layer": "all"}, **options))


def test_last_layers_of_an_encoder_that_gives_one_are_refused(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"set encoders\.bert\.layer to all"):
        compose(make_recipe(method="embedding", last=2))
    assert compose(make_recipe(method="embedding")).model.glue_modules
