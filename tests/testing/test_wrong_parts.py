"""Parts that are wrong where a cache or a shape hides it: the kit names the check that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from fusion.glue.base import Glue, Place
from fusion.hosts.families import MARIAN, T5
from fusion.hosts.site import At
from fusion.memory import Memory
from fusion.registry import ENCODERS, GLUE, HOSTS
from fusion.testing import (
    COMMON,
    OF_ENCODERS,
    OF_HOSTS,
    CheckFailure,
    EncoderChoice,
    check_encoder,
    check_glue,
    check_host,
)
from fusion.testing.hosts import BART

SELF, CROSS = "decoder.{i}.self_attention", "decoder.{i}.cross_attention"
LAYER = "model.decoder.layers.{i}"


@pytest.fixture
def registered(request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Register a part for one test."""
    names: list[tuple[Any, str]] = []

    def register(registry: Any, kind: Any) -> str:
        name = f"wrong-{kind.__name__}"
        registry.register(name)(kind)
        names.append((registry, name))
        return name

    yield register
    for registry, name in names:
        registry._loaded.pop(name)


def failures(caught: pytest.ExceptionInfo[CheckFailure]) -> dict[str, str]:
    """Check -> what it says."""
    lines = [line.split(": ", maxsplit=2) for line in str(caught.value).split("\n")]
    return {check: said for _, check, said in lines}


class _Decoding(Glue):
    """A mean of the memory, projected and gated by x; right but for what a kind does."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.read = nn.Linear(place.memory_width, place.width)
        self.gate = nn.Linear(place.width, place.width)

    def mean(self, memory: Memory) -> Tensor:
        mask = memory.mask
        if mask is None:
            mask = memory.states.new_ones(memory.states.shape[:2])
        weights = mask.to(memory.states.dtype)[..., None]
        pooled: Tensor = self.read((memory.states * weights).sum(dim=1) / weights.sum(dim=1))
        return pooled

    def kept(self, memory: Memory, key: str, make: Callable[[], Tensor]) -> Tensor:
        if not memory.reusable:
            return make()
        if key not in memory.projected:
            made = make()
            memory.projected[key] = made, made
        return memory.projected[key][0]

    def rows(self, value: Tensor, x: Tensor) -> Tensor:
        return value.repeat_interleave(x.shape[0] // value.shape[0], dim=0)[:, None]

    def value(self, x: Tensor, memory: Memory) -> Tensor:
        return self.rows(self.kept(memory, str(id(self)), lambda: self.mean(memory)), x)

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        return host() + torch.tanh(self.gate(x)) * self.value(x, memory)


class RightDecoding(_Decoding):
    pass


class KeepsTheFirstStep(_Decoding):
    def value(self, x: Tensor, memory: Memory) -> Tensor:
        key = str(id(self))
        return self.kept(memory, key, lambda: self.rows(self.mean(memory), x) * self.gate(x[:, :1]))


class SharesItsKey(_Decoding):
    def value(self, x: Tensor, memory: Memory) -> Tensor:
        return self.rows(self.kept(memory, "all", lambda: self.mean(memory)), x)


class KeepsTheSentence(_Decoding):
    found: Tensor | None = None

    def value(self, x: Tensor, memory: Memory) -> Tensor:
        if not memory.reusable:
            return super().value(x, memory)
        if self.found is None or len(self.found) != len(memory.states):
            self.found = self.mean(memory)
        return self.rows(self.found, x)


class RepeatsRows(_Decoding):
    def rows(self, value: Tensor, x: Tensor) -> Tensor:
        return value.repeat(x.shape[0] // value.shape[0], 1)[:, None]


def check_decoding(name: str) -> None:
    wanted = ("generate", "steps", "reuse", "beams")
    check_glue(name, hosts=["marian"], skip=[check for check in COMMON if check not in wanted])


def test_glue_whose_decoding_is_right_passes(registered: Callable[..., str]) -> None:
    check_decoding(registered(GLUE, RightDecoding))


@pytest.mark.parametrize(
    ("kind", "check", "said"),
    [
        (KeepsTheFirstStep, "reuse", "depends on x"),
        (SharesItsKey, "steps", "under a key of the module's own"),
        (KeepsTheSentence, "steps", "after other sentences of the same shape"),
        (RepeatsRows, "beams", "repeat_interleave"),
    ],
)
def test_wrong_decoding_is_named_even_where_it_is_the_same_with_a_cache_as_without(
    registered: Callable[..., str], kind: type[Glue], check: str, said: str
) -> None:
    with pytest.raises(CheckFailure) as caught:
        check_decoding(registered(GLUE, kind))
    found = failures(caught)
    assert said in found[check], found
    assert "generate" not in found or kind is RepeatsRows, found


class WrongConfig(PretrainedConfig):
    model_type = "wrong-encoder"

    def __init__(self, vocab_size: int = 110, hidden_size: int = 24, **options: Any) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, 2
        super().__init__(**options)


AutoConfig.register("wrong-encoder", WrongConfig)


class RightEncoder(PreTrainedModel):
    """Two layers that read a position each."""

    config_class = WrongConfig

    def __init__(self, config: WrongConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        width = config.hidden_size
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.more(config)
        self.post_init()

    def more(self, config: WrongConfig) -> None:
        pass

    def every(self, ids: Tensor) -> list[Tensor]:
        states = [self.words(ids)]
        for layer in self.layers:
            states.append(torch.tanh(layer(states[-1])))
        return states

    def given(self, states: list[Tensor]) -> tuple[Tensor, ...] | None:
        return tuple(states)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        states = self.every(input_ids)
        hidden = self.given(states) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=hidden)


class GivesNoLayers(RightEncoder):
    def given(self, states: list[Tensor]) -> tuple[Tensor, ...] | None:
        return None


class LeavesTheEmbeddingsOut(RightEncoder):
    def given(self, states: list[Tensor]) -> tuple[Tensor, ...] | None:
        return tuple(states[1:])


class GivesLayersBackwards(RightEncoder):
    def given(self, states: list[Tensor]) -> tuple[Tensor, ...] | None:
        return tuple(states[::-1])


class GivesTheLastLayerTwice(RightEncoder):
    def given(self, states: list[Tensor]) -> tuple[Tensor, ...] | None:
        return states[0], states[-1], states[-1]


class PoolsALayer(RightEncoder):
    def given(self, states: list[Tensor]) -> tuple[Tensor, ...] | None:
        return states[0], states[1].mean(dim=1), states[2]


class HasAParameterTooMany(RightEncoder):
    def more(self, config: WrongConfig) -> None:
        self.scale = nn.Parameter(torch.ones(3))


class DetachesItsEmbeddings(RightEncoder):
    def every(self, ids: Tensor) -> list[Tensor]:
        states = [self.words(ids).detach()]
        return states + super().every(ids)[1:] if not self.training else self.detached(states)

    def detached(self, states: list[Tensor]) -> list[Tensor]:
        for layer in self.layers:
            states.append(torch.tanh(layer(states[-1])))
        return states


def run_encoder(
    registered: Callable[..., str], kind: type[PreTrainedModel], **choice: Any
) -> list[Any]:
    builder = registered(ENCODERS, kind)
    return check_encoder(EncoderChoice(WrongConfig(), builder=builder, **choice), skip=[*COMMON])


def test_an_encoder_that_gives_its_layers_and_trains_passes(
    registered: Callable[..., str],
) -> None:
    (report,) = run_encoder(registered, RightEncoder)
    assert report.passed == [*OF_ENCODERS]


@pytest.mark.parametrize(
    ("kind", "check", "said"),
    [
        (GivesNoLayers, "hidden_states", "gives 0 hidden states"),
        (LeavesTheEmbeddingsOut, "hidden_states", "gives 2 hidden states"),
        (GivesLayersBackwards, "hidden_states", "hidden_states[-1] differs"),
        (GivesTheLastLayerTwice, "hidden_states", "[1] and hidden_states[2] are the same"),
        (PoolsALayer, "hidden_states", "hidden_states[1] has shape [3, 24]"),
        (HasAParameterTooMany, "unfrozen", "no gradient to scale"),
        (DetachesItsEmbeddings, "unfrozen", "no gradient to words.weight"),
    ],
)
def test_an_encoder_whose_layers_or_training_are_wrong_is_named(
    registered: Callable[..., str], kind: type[PreTrainedModel], check: str, said: str
) -> None:
    with pytest.raises(CheckFailure) as caught:
        run_encoder(registered, kind)
    found = failures(caught)
    assert list(found) == [check] and said in found[check], found


def test_a_parameter_without_gradient_passes_where_its_author_says_why(
    registered: Callable[..., str],
) -> None:
    run_encoder(registered, HasAParameterTooMany, unused={"scale": "read by another tool"})


def _marian(**sites: Any) -> Any:
    rows = {"self": SELF, "cross": CROSS}
    rows |= {
        "output": "decoder.{i}.output",
        "source": "encoder.embeddings",
        "target": "decoder.embeddings",
        "after": "encoder.{i}.after_self_attention",
        "encoder": "encoder.output",
        "forward": "decoder.{i}.feed_forward",
        "attention": "encoder.{i}.self_attention",
    }
    return replace(MARIAN, sites=MARIAN.sites | {rows[k]: v for k, v in sites.items()})


@pytest.mark.parametrize(
    ("family", "check", "said"),
    [
        (_marian(output=At(f"{LAYER}.nope", x="output")), "sites", f"no module: {LAYER}.nope"),
        (_marian(source=At("model.encoder.words", x="output")), "sites", "model.encoder.words"),
        (_marian(cross=f"{LAYER}.self_attn"), "sites", "are one module"),
        (_marian(encoder=At("model.shared", x="output")), "sites", "encoder.output does not run"),
        (_marian(forward=At(f"{LAYER}.fc2")), "sites", "decoder.0.feed_forward: x has shape"),
        (
            _marian(**{"self": f"{LAYER}.encoder_attn", "cross": f"{LAYER}.self_attn"}),
            "roles",
            "decoder.0.self_attention: for the same x the output changes with the encoder's",
        ),
        (
            _marian(cross=At(f"{LAYER}.self_attn_layer_norm")),
            "roles",
            "decoder.0.cross_attention: for the same x the output does not change",
        ),
        (
            _marian(
                source=At("model.decoder.embed_tokens", x="output"),
                target=At("model.encoder.embed_tokens", x="output"),
            ),
            "roles",
            "encoder.embeddings does not change with what the encoder reads",
        ),
        (
            _marian(attention=At("model.encoder.layers.{i}.self_attn.q_proj")),
            "roles",
            "encoder.0.self_attention: the output at a position does not change",
        ),
        (replace(MARIAN, norm="pre"), "roles", "norm is pre, but x at encoder.1.self_attention is"),
        (_marian(output=At(f"{LAYER}.fc2", x="output")), "states", "still depend on the text"),
        (
            _marian(after=At("model.encoder.layers.{i}.self_attn", x="output"), attention=()),
            "states",
            "at encoder.1.after_self_attention, logits still depend",
        ),
        (_marian(attention=At("model.encoder.layers.{i}")), "states", "nothing of the text"),
    ],
)
def test_a_family_whose_sites_are_not_what_they_are_named_is_told_which(
    monkeypatch: pytest.MonkeyPatch, family: Any, check: str, said: str
) -> None:
    monkeypatch.setitem(HOSTS._loaded, "marian", family)
    with pytest.raises(CheckFailure) as caught:
        check_host("marian", BART | {"decoder_ffn_dim": 24}, skip=[*COMMON])
    found = failures(caught)
    assert said in found.get(check, ""), found


def test_a_row_that_is_absent_passes_where_its_author_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = "decoder.{i}.after_feed_forward"
    family = replace(T5, sites=T5.sites | {row: At("decoder.block.{i}.nope", x="output")})
    monkeypatch.setitem(HOSTS._loaded, "t5", family)
    (report,) = check_host("t5", skip=[*COMMON], absent={row: "of larger hosts alone"})
    assert report.passed == [*OF_HOSTS]
