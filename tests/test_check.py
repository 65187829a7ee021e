"""A check says what a composed model does on one batch, and leaves the model as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.check import Findings, check_model
from fusion.composition import Composition, compose
from fusion.recipe import Recipe
from fusion.testing.bench import Bench, EncoderChoice, HostChoice
from fusion.testing.hosts import BART, TINY_HOSTS

RecipeMaker = Callable[..., Recipe]
TARGETS = ["die katze schläft .", "ein hund sieht die katze .", "der lehrer liest ."]
GATED: list[dict[str, Any]] = [{"method": "gated", "encoder": "bert"}]
DEEP = BART | {"encoder_layers": 12, "decoder_layers": 12}
SWITCH = TINY_HOSTS["switch_transformers"][1] | {"num_experts": 64}
of_bert2bert = pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")


def checked(composition: Composition, sentences: list[str]) -> Findings:
    return check_model(composition.model, composition.processor(sentences, TARGETS))


def checked_host(
    folder: Path, host: HostChoice, glue: list[dict[str, Any]], *, seeds: int
) -> list[Findings]:
    """With some seeds of dropout and LayerDrop."""
    encoders = {"bert": EncoderChoice()} if any("encoder" in one for one in glue) else {}
    bench, found = Bench(folder, host, encoders, glue), []
    for seed in range(seeds):
        torch.manual_seed(seed)
        found.append(check_model(bench.start.model, bench.batch))
    return found


@pytest.mark.parametrize("method", ["gated", "bert-fused"])
def test_a_fresh_composition_holds_all_it_claims(
    make_recipe: RecipeMaker, sentences: list[str], method: str
) -> None:
    findings = checked(compose(make_recipe(method=method)), sentences)
    assert findings.problems == []
    held = "\n".join(findings.held)
    assert "ledger: all" in held and "frozen: none of" in held and "gradients: all" in held
    assert ("bit for bit" in held) == (method == "gated")


def test_glue_that_nothing_reads_is_named(make_recipe: RecipeMaker, sentences: list[str]) -> None:
    composition = compose(make_recipe())
    name, module = next(iter(composition.model.glue_modules.items()))
    module.register_parameter("spare", torch.nn.Parameter(torch.ones(2)))
    problems = checked(composition, sentences).problems
    assert (
        f"{name}.spare: trainable, but gets no gradient; train.policies can freeze it" in problems
    )


def test_a_hosts_encoder_that_nothing_reads_is_a_problem(
    make_recipe: RecipeMaker, sentences: list[str]
) -> None:
    composition = compose(make_recipe(method="replace-encoder"))
    assert checked(composition, sentences).problems == []  # the model has frozen it
    composition.model.host.get_encoder().layers.requires_grad_(True)
    (problem,) = checked(composition, sentences).problems
    assert problem.startswith("host.model.encoder: trainable, but none of it gets a gradient; ")
    assert "train.policies can freeze host.model.encoder.layers.0.self_attn.k_proj." in problem


def test_an_encoder_that_nothing_reads_is_a_problem(
    make_recipe: RecipeMaker, sentences: list[str]
) -> None:
    composition = compose(make_recipe(encoder={"layer": 0, "freeze": False}))
    composition.model.encoder_parts["bert"].model.embeddings.requires_grad_(False)
    (problem,) = checked(composition, sentences).problems
    assert problem.startswith("encoders.bert: trainable, but none of it gets a gradient; ")


def test_layers_above_the_one_that_is_read_are_named(
    make_recipe: RecipeMaker, sentences: list[str]
) -> None:
    findings = checked(compose(make_recipe(encoder={"layer": 0, "freeze": False})), sentences)
    assert findings.problems == []
    (line,) = [line for line in findings.held if "no gradient to" in line]
    query = "encoders.bert.model.encoder.layer.0.attention.self.query.weight"
    assert line.startswith(f"encoders.bert: this batch gives no gradient to {query}, ")
    assert "and 29 more" in line
    assert any(re.match(r"gradients: \d+ of \d+ trainable", line) for line in findings.held)


def test_a_pass_in_which_all_that_is_trained_is_dropped_is_followed_by_another(
    make_recipe: RecipeMaker, host_dirs: dict[str, Path], sentences: list[str]
) -> None:
    glue = {"method": "bert-fused", "encoder": "bert", "sites": ["decoder.0.cross_attention"]}
    frozen = {"source": str(host_dirs["marian"]), "freeze": True}
    for seed in range(4):  # half of the draws leave the glue out
        recipe = make_recipe(glue=[glue | {"drop_net": 1.0}], host_settings=frozen, seed=seed)
        assert checked(compose(recipe), sentences).problems == []


@of_bert2bert
@pytest.mark.parametrize(
    ("host", "unreached"),
    [
        (HostChoice("led"), "query_global.weight"),
        (HostChoice("bert2bert"), "host.encoder.pooler.dense.weight"),
        (HostChoice("switch_transformers", SWITCH), "mlp.experts.expert_"),
        (HostChoice("m2m_100", DEEP), ""),  # LayerDrop: glue in every layer waits for its turn
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_a_batch_does_not_reach_of_a_host_is_named_and_no_problem(
    tmp_path: Path, host: HostChoice, unreached: str
) -> None:
    for findings in checked_host(tmp_path, host, GATED, seeds=3):
        assert findings.problems == []
        lines = [line for line in findings.held if line.startswith("host: this batch gives no")]
        assert [unreached in line for line in lines] == [True] * bool(unreached)


def test_glue_in_experts_that_a_batch_does_not_reach_is_no_problem(tmp_path: Path) -> None:
    site = "host:encoder.block.1.layer.1.mlp.experts.*.wi"
    glue = [{"method": "lora", "sites": [site]}]
    (findings,) = checked_host(tmp_path, HostChoice("switch_transformers", SWITCH), glue, seeds=1)
    assert findings.problems == []
    (line,) = [line for line in findings.held if line.startswith("glue.lora: this batch gives")]
    assert "mlp_experts_expert_" in line


def test_glue_at_modules_that_are_never_run_is_a_problem(tmp_path: Path) -> None:
    glue = [
        {
            "method": "lora",
            "sites": ["host:led.encoder.layers.*.self_attn.longformer_self_attn.query_global"],
        }
    ]
    (findings,) = checked_host(tmp_path, HostChoice("led"), glue, seeds=1)
    (problem,) = findings.problems
    assert problem.startswith("glue.lora: trainable, but none of it gets a gradient; ")


@pytest.mark.slow
@of_bert2bert
@pytest.mark.parametrize("host", TINY_HOSTS)
def test_gated_glue_in_a_host_of_every_family_has_no_problems(tmp_path: Path, host: str) -> None:
    for findings in checked_host(tmp_path, HostChoice(host), GATED, seeds=4):
        assert findings.problems == []


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
