"""A check says what a composed model does on one batch, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fusion.check import Findings, check_model
from fusion.composition import Composition, compose
from fusion.recipe import Recipe

RecipeMaker = Callable[..., Recipe]
TARGETS = ["die katze schläft .", "ein hund sieht die katze .", "der lehrer liest ."]


def checked(composition: Composition, sentences: list[str]) -> Findings:
    return check_model(composition.model, composition.processor(sentences, TARGETS))


@pytest.mark.parametrize("method", ["gated", "bert-fused"])
def test_a_fresh_composition_holds_all_it_claims(
    make_recipe: RecipeMaker, sentences: list[str], method: str
) -> None:
    findings = checked(compose(make_recipe(method=method)), sentences)
    assert findings.problems == []
    held = "\n".join(findings.held)
    assert "ledger: all" in held and "frozen: none of" in held and "gradients: all" in held
    assert ("bit for bit" in held) == (method == "gated")


def test_a_trainable_tensor_that_nothing_reads_is_named(
    make_recipe: RecipeMaker, sentences: list[str]
) -> None:
    recipe = make_recipe(encoder={"layer": 0, "freeze": False})
    findings = checked(compose(recipe), sentences)
    dead = [line.split(":")[0] for line in findings.problems]
    assert "encoders.bert.model.encoder.layer.0.attention.self.query.weight" in dead
    assert all(line.startswith("encoders.bert.model.encoder.layer.") for line in dead)


def test_glue_that_claims_to_be_neutral_and_is_not_is_found(
    make_recipe: RecipeMaker, sentences: list[str]
) -> None:
    composition = compose(make_recipe())
    with torch.no_grad():
        for module in composition.model.glue_modules.values():
            module.get_parameter("gate").fill_(0.5)
    (problem,) = checked(composition, sentences).problems
    assert problem.startswith("neutral start: logits differ from the host's by ")


def test_a_value_that_is_not_finite_is_found(
    make_recipe: RecipeMaker, sentences: list[str]
) -> None:
    composition = compose(make_recipe())
    with torch.no_grad():
        composition.model.host.get_parameter("model.encoder.layers.0.fc1.bias")[0] = torch.nan
    assert "logits: not finite" in checked(composition, sentences).problems


def test_a_lost_tie_is_found(make_recipe: RecipeMaker, sentences: list[str]) -> None:
    composition = compose(make_recipe())
    head: Any = composition.model.host.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    assert any("no longer tied" in line for line in checked(composition, sentences).problems)


def test_the_model_is_left_as_it_was(make_recipe: RecipeMaker, sentences: list[str]) -> None:
    composition = compose(make_recipe(method="bert-fused"))
    model = composition.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    checked(composition, sentences)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training and (model.clock.update, model.clock.forward) == (0, 0)
    batch = composition.processor(sentences, TARGETS)
    with torch.no_grad():
        open_logits = model(**batch).logits
        with model.without_glue():
            closed = model(**batch).logits
        assert torch.equal(model(**batch).logits, open_logits)
    assert not torch.equal(open_logits, closed)
