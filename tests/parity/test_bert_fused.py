"""BERT-fused against its equations in float64, and drop-net's draws."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import Mix, attention

from fusion.composition import compose
from fusion.errors import RecipeError
from fusion.glue.base import Place
from fusion.glue.bert_fused import BertFused
from fusion.memory import Memory

PLACE = Place("encoder.0.self_attention", width=4, heads=2, memory_width=6)


def equation(bench: Any, weights: Callable[[], tuple[float, float]]) -> Callable[[Any], Mix]:
    """A, x -> w_h A + w_b Attn(x, memory)."""

    def of(glue: Any) -> Mix:
        p = dict(glue.state_dict())

        def mix(x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            allowed = bench.memory_mask[:, None, :].expand(-1, x.shape[1], -1)
            of_host, of_memory = weights()
            read = attention(p, "attention", x, bench.memory, allowed, 4)
            return of_host * own + of_memory * read

        return mix

    return of


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("memory_width", [24, 32])
@pytest.mark.parametrize(("start", "weights"), [("paper", (0.5, 0.5)), ("neutral", (1.0, 1.0))])
def test_evaluation_is_the_papers_equation(
    make_bench: Any, norm: str, memory_width: int, start: str, weights: tuple[float, float]
) -> None:
    bench = make_bench(norm=norm, memory_width=memory_width, method="bert-fused", start=start)
    bench.check(equation(bench, lambda: weights))


@pytest.mark.parametrize("weights", [(1, 1), (0.5, 0.25), (1, 0), (0, 1)])
def test_weights_are_those_of_evaluation_and_of_training_without_drop_net(
    make_bench: Any, weights: tuple[float, float]
) -> None:
    bench = make_bench(method="bert-fused", drop_net=0.0, weights=list(weights))
    bench.check(equation(bench, lambda: weights))
    for seed, glue in enumerate(bench.model.glue_modules.values()):
        glue.train()
        glue.draw(random.Random(seed))
    bench.check(equation(bench, lambda: weights))


def test_drop_net_drops_from_given_weights_as_from_the_starts_own() -> None:
    glue = BertFused(PLACE, drop_net=0.6, weights=[1, 0.25]).train()
    neutral = BertFused(PLACE, start="neutral", drop_net=0.6, weights=[1, 0.25]).train()
    x, memory = torch.randn(1, 1, 4), Memory(torch.randn(1, 2, 6), None)
    for seed in range(20):
        u = random.Random(seed).random()
        for one, (of_host, of_memory) in {
            glue: (1.0, 0.0) if u < 0.3 else (0.0, 1.0) if u > 0.7 else (1.0, 0.25),
            neutral: (1.0, 0.0) if u < 0.3 else (1.0, 0.25 / 0.7),
        }.items():
            one.draw(random.Random(seed))
            expected = of_host * x + of_memory * one.attention(x, memory)
            assert torch.allclose(one(x, lambda: x, memory), expected, atol=1e-6)


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], "ab", 1, [1, None], [float("nan"), 1]])
def test_weights_that_are_not_two_numbers_are_refused(weights: Any) -> None:
    with pytest.raises(RecipeError, match="weights: two numbers"):
        BertFused(PLACE, weights=weights)


def test_a_neutral_start_refuses_another_weight_of_the_host() -> None:
    assert BertFused(PLACE, start="neutral", weights=[1, 0.5]).neutral
    with pytest.raises(RecipeError, match=r"neutral keeps the host's at 1; found \[0.5, 1\]"):
        BertFused(PLACE, start="neutral", weights=[0.5, 1])


def paper_weights(u: float, p: float) -> tuple[float, float]:
    if u < p / 2:
        return 1.0, 0.0
    return (0.0, 1.0) if u > 1 - p / 2 else (0.5, 0.5)


def neutral_weights(u: float, p: float) -> tuple[float, float]:
    return (1.0, 0.0) if u < p / 2 else (1.0, 1 / (1 - p / 2))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("start", ["paper", "neutral"])
def test_every_branch_of_drop_net_is_the_papers_equation(
    make_bench: Any, norm: str, start: str
) -> None:
    p = 0.6
    bench = make_bench(norm=norm, method="bert-fused", start=start, drop_net=p)
    rule = paper_weights if start == "paper" else neutral_weights
    seen = set()
    for seed in range(8):
        weights = rule(random.Random(seed).random(), p)
        if weights in seen:
            continue
        seen.add(weights)
        for glue in bench.model.glue_modules.values():
            glue.train()
            glue.draw(random.Random(seed))
        bench.check(equation(bench, lambda weights=weights: weights))
    assert len(seen) == (3 if start == "paper" else 2)


def branches(glue: BertFused, draws: int, training: bool = True) -> Counter[tuple[bool, bool]]:
    """How often (host, memory) was computed, over draws."""
    glue.train(training)
    memory = Memory(torch.randn(1, 2, 6), None)
    reads: list[int] = []
    hook = glue.attention.register_forward_hook(lambda *_: reads.append(1))
    counts: Counter[tuple[bool, bool]] = Counter()
    x, rng = torch.randn(1, 1, 4), random.Random(5)
    for _ in range(draws):
        calls: list[int] = []
        reads.clear()
        glue.draw(rng)
        glue(x, lambda calls=calls: calls.append(1) or x, memory)
        assert len(calls) <= 1
        assert len(reads) <= 1
        counts[bool(calls), bool(reads)] += 1
    hook.remove()
    return counts


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_drop_net_takes_each_branch_as_often_as_the_paper_says(p: float) -> None:
    draws = 3000
    counts = branches(BertFused(PLACE, drop_net=p), draws)
    assert counts[True, False] / draws == pytest.approx(p / 2, abs=0.03)
    assert counts[False, True] / draws == pytest.approx(p / 2, abs=0.03)
    assert counts[True, True] / draws == pytest.approx(1 - p, abs=0.03)
    assert counts[False, False] == 0


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_neutral_drop_net_never_drops_the_host(p: float) -> None:
    draws = 3000
    counts = branches(BertFused(PLACE, start="neutral", drop_net=p), draws)
    assert counts[True, False] / draws == pytest.approx(p / 2, abs=0.03)
    assert counts[True, True] / draws == pytest.approx(1 - p / 2, abs=0.03)


def test_evaluation_computes_both_branches_whatever_was_drawn() -> None:
    assert branches(BertFused(PLACE, drop_net=1.0), 50, training=False) == {(True, True): 50}


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_a_rate_outside_0_to_1_is_refused(p: float) -> None:
    with pytest.raises(RecipeError, match="from 0 to 1"):
        BertFused(PLACE, drop_net=p)


def pattern(model: Any, batch: dict[str, torch.Tensor], update: int, passes: int) -> list[set[str]]:
    """Per forward pass of an update, the projections of host sites and glue that were computed."""
    model.train()
    model.clock.next_update(update)
    computed: list[set[str]] = []
    hooks = []
    for name, module in model.named_modules():
        if name.endswith(("attention.k_proj", "encoder.layers.0.self_attn.k_proj")):
            hook = lambda *_, name=name: computed[-1].add(name)  # noqa: E731
            hooks.append(module.register_forward_hook(hook))
    for _ in range(passes):
        computed.append(set())
        with torch.no_grad():
            model(**batch)
    for hook in hooks:
        hook.remove()
    return computed


def test_draws_depend_on_seed_update_pass_and_site_alone(
    make_recipe: Any, bert_dir: Any, sentences: list[str]
) -> None:
    recipe = make_recipe(method="bert-fused", drop_net=1.0)
    composition = compose(recipe)
    model, batch = composition.model, composition.processor(sentences[:1], ["ein Hund ."])
    torch.manual_seed(1)
    random.seed(1)
    first = [pattern(model, batch, update, 3) for update in range(4)]
    torch.manual_seed(2)
    random.seed(2)
    other_model = compose(recipe).model
    assert [pattern(other_model, batch, update, 3) for update in (3, 1, 0, 2)] == [
        first[update] for update in (3, 1, 0, 2)
    ]
    flat = [frozenset(computed) for passes in first for computed in passes]
    assert len(set(flat)) > 4  # differs by update, pass and site
    assert len(set(map(frozenset, first[0]))) > 1

    source = {"source": str(bert_dir)}
    glue = [
        {"method": "gated", "encoder": "second"},
        {"method": "bert-fused", "encoder": "bert", "drop_net": 1.0},
    ]
    larger = compose(make_recipe(encoders={"second": source, "bert": source}, glue=glue))
    batch = larger.processor(sentences[:1], ["ein Hund ."])
    of_glue = [
        [{n for n in passed if n.startswith("glue.bert_fused")} for passed in passes]
        for passes in first
    ]
    again = [pattern(larger.model, batch, update, 3) for update in range(4)]
    assert of_glue == [
        [{n for n in passed if n.startswith("glue.bert_fused")} for passed in passes]
        for passes in again
    ]
    reseeded = compose(make_recipe(method="bert-fused", drop_net=1.0, seed=2))
    batch = reseeded.processor(sentences[:1], ["ein Hund ."])
    assert [pattern(reseeded.model, batch, update, 3) for update in range(4)] != first


def test_a_dropped_branch_is_not_computed_in_the_host(
    make_recipe: Any, sentences: list[str]
) -> None:
    composition = compose(make_recipe(method="bert-fused", drop_net=1.0))
    batch = composition.processor(sentences, ["a", "b", "c"])
    glue, host = (
        "glue.bert_fused.encoder_0_self_attention.attention.k_proj",
        "host.model.encoder.layers.0.self_attn.k_proj",
    )
    for update in range(6):
        for computed in pattern(composition.model, batch, update, 1):
            assert (glue in computed) != (host in computed)  # p = 1: exactly one of the two
