"""A plug-in: an encoder, a glue method and a host family that fusion does not know."""

from dataclasses import replace

import torch
from torch import nn
from transformers import AutoConfig, MarianConfig, MarianMTModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from fusion.glue.base import Glue
from fusion.hosts.families import MARIAN


class BagConfig(PretrainedConfig):
    model_type = "bag"

    def __init__(self, vocab_size=100, hidden_size=24, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, 1
        super().__init__(**kwargs)


class BagEncoder(PreTrainedModel):
    """At every position, the mean of the words so far."""

    config_class = BagConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False):
        words = self.words(input_ids)
        counts = torch.arange(1, words.shape[1] + 1, device=words.device)[:, None]
        states = torch.tanh(self.mix(words.cumsum(dim=1) / counts))
        return BaseModelOutput(last_hidden_state=states, hidden_states=(words, states))


AutoConfig.register("bag", BagConfig)
build_bag = BagEncoder


class Pooled(Glue):
    """A + W mean(memory), W at zero at the start: neutral."""

    def __init__(self, place, *, bias: bool = True):
        super().__init__(place)
        self.read = nn.Linear(place.memory_width, place.width, bias=bias)

    def initial(self):
        return {"read.{p}": "zeros"}

    @property
    def neutral(self):
        return True

    def forward(self, x, host, memory):
        states, mask = memory.states, memory.mask
        if mask is None:
            mask = states.new_ones(states.shape[:2])
        weights = mask.to(states.dtype)[..., None]
        read = self.read((states * weights).sum(dim=1) / weights.sum(dim=1))
        beams = x.shape[0] // read.shape[0]
        return host() + read.repeat_interleave(beams, dim=0)[:, None]


class MyMarianConfig(MarianConfig):
    model_type = "my-marian"


class MyMarianMTModel(MarianMTModel):
    config_class = MyMarianConfig


AutoConfig.register("my-marian", MyMarianConfig)
MY_MARIAN = replace(MARIAN, model_class="fusion_example:MyMarianMTModel")
