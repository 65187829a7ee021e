"""A host comes out of a saved model in the format it went in, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import fairseq_layout as layout
from transformers import AutoModelForSeq2SeqLM, MarianMTModel

from fusion.checkpoints.fairseq import open_fairseq
from fusion.composition import compose
from fusion.errors import ModelError
from fusion.export import export
from fusion.recipe import Recipe
from fusion.saved import load_model, save_model

RecipeMaker = Callable[..., Recipe]
SOURCE = torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]])
TARGET = torch.tensor([[2, 5, 6], [2, 8, 9]])


@pytest.fixture
def fairseq_model(make_recipe: RecipeMaker, tokenizer_dir: Path, tmp_path: Path) -> Path:
    """A model whose host comes from a packed fairseq checkpoint, saved with its glue."""
    weights = layout.random_weights(layout.SHAPE)
    weights["encoder.embed"] = weights["output.weight"] = weights["decoder.embed"]
    told = layout.options(share_all_embeddings=True, max_target_positions=40)
    layout.save(tmp_path / "old.pt", layout.state(weights, packed=True), told)
    host = {"source": str(tmp_path / "old.pt"), "format": "fairseq"}
    recipe = make_recipe(host_settings=host | {"tokenizer": str(tokenizer_dir)})
    composed = compose(recipe)
    save_model(composed.model, tmp_path / "model", composed.processor)
    return tmp_path / "model"


def host_logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output = model(input_ids=SOURCE, decoder_input_ids=TARGET)
    return output.logits  # type: ignore[no-any-return]


def test_a_fairseq_host_is_saved_by_its_source_and_comes_out_as_it_went_in(
    fairseq_model: Path, tmp_path: Path
) -> None:
    assert not (fairseq_model / "host" / "model.safetensors").exists()
    export(fairseq_model, "fairseq", tmp_path / "new.pt")
    old, new = open_fairseq(tmp_path / "old.pt"), open_fairseq(tmp_path / "new.pt")
    assert new.tensors() == old.tensors()
    for name in old.tensors():
        if not name.endswith("_float_tensor"):  # fairseq's uninitialised memory
            assert torch.equal(new.read(name), old.read(name)), name


@pytest.mark.parametrize("to", ["hf", "marian-hf"])
def test_a_fairseq_host_comes_out_for_plain_transformers(
    fairseq_model: Path, tmp_path: Path, to: str
) -> None:
    wanted = host_logits(load_model(fairseq_model).remove_glue())
    export(fairseq_model, to, tmp_path / "out")
    kind = MarianMTModel if to == "marian-hf" else AutoModelForSeq2SeqLM
    plain = kind.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(host_logits(plain), wanted, rtol=0, atol=1e-5)


def test_a_trained_marian_host_comes_out_bit_for_bit(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    composed = compose(make_recipe())
    with torch.no_grad():
        for parameter in composed.model.host.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    save_model(composed.model, tmp_path / "model", composed.processor)
    export(tmp_path / "model", "marian-hf", tmp_path / "out")
    plain = MarianMTModel.from_pretrained(tmp_path / "out").state_dict()
    host = composed.model.remove_glue().state_dict()
    assert plain.keys() == host.keys()
    assert all(torch.equal(plain[name], host[name]) for name in host)


@pytest.mark.parametrize(
    ("host", "to", "message"),
    [
        ("t5", "marian-hf", "a t5 host is no Marian; use hf"),
        ("marian", "fairseq", "did not come from a fairseq checkpoint"),
        ("marian", "farseq", 'no format "farseq"; nearest: "fairseq"'),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    make_recipe: RecipeMaker, tmp_path: Path, host: str, to: str, message: str
) -> None:
    composed = compose(make_recipe(host))
    save_model(composed.model, tmp_path / "model", composed.processor)
    with pytest.raises(ModelError, match=message):
        export(tmp_path / "model", to, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="exists; choose another place"):
        export(tmp_path / "model", "hf", tmp_path / "out")
