"""Renamed copies of real models: the same values under another toolkit's names, by a seed.

The names of a real model are read into concepts by hand-written tables, and written again in the
vocabulary of another toolkit, or in words that mean nothing. None of the tables is the library's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from styles import STYLES, Style
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)


def _seq2seq(kind: type, config: type, rng: random.Random, width: int, inner: int) -> nn.Module:
    return kind(
        config(
            vocab_size=21, d_model=width, encoder_ffn_dim=inner, decoder_ffn_dim=inner,
            encoder_layers=rng.choice([1, 2, 3]), decoder_layers=rng.choice([1, 2, 3]),
            encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=18,
            pad_token_id=1, decoder_start_token_id=2, bos_token_id=0, eos_token_id=2,
            forced_eos_token_id=2,
        )
    )  # fmt: skip


def _bert(kind: type, config: type, rng: random.Random, width: int, inner: int) -> nn.Module:
    return kind(
        config(
            vocab_size=21, hidden_size=width, num_hidden_layers=rng.choice([1, 2, 4]),
            num_attention_heads=2, intermediate_size=inner, max_position_embeddings=18,
            bos_token_id=0, pad_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def _t5(rng: random.Random, width: int, inner: int) -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=21, d_model=width, d_kv=width // 2, d_ff=inner, num_heads=2,
            num_layers=rng.choice([2, 3]), num_decoder_layers=rng.choice([2, 3]),
            relative_attention_num_buckets=7, decoder_start_token_id=0,
        )
    )  # fmt: skip


def _gpt2(rng: random.Random, width: int, inner: int) -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=21, n_embd=width, n_layer=rng.choice([1, 2, 4]), n_head=2, n_positions=18,
            n_inner=inner, bos_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[random.Random, int, int], nn.Module]] = {
    "marian": lambda *a: _seq2seq(MarianMTModel, MarianConfig, *a),
    "bart": lambda *a: _seq2seq(BartForConditionalGeneration, BartConfig, *a),
    "t5": _t5,
    "bert": lambda *a: _bert(BertModel, BertConfig, *a),
    "roberta": lambda *a: _bert(RobertaModel, RobertaConfig, *a),
    "gpt2": _gpt2,
}


def make_model(kind: str, seed: int) -> nn.Module:
    """A tiny real model, every tensor random; sizes by the seed (24 is three times the width)."""
    rng = random.Random(seed)
    model = MODELS[kind](rng, 8, rng.choice([12, 16, 24]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


@dataclass(frozen=True)
class Concept:
    """What a tensor is, in nobody's vocabulary."""

    block: str  # self cross ffn, or out of layers: emb pos type embnorm finalnorm head bias pool
    part: str = ""  # q k v o qkv in out norm rel
    leaf: str = "weight"
    side: str = ""  # encoder decoder or none
    layer: int | None = None


_BART_PARTS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
_BERT_PARTS = {
    "attention.self.query": ("self", "q"), "attention.self.key": ("self", "k"),
    "attention.self.value": ("self", "v"), "attention.output.dense": ("self", "o"),
    "attention.output.LayerNorm": ("self", "norm"), "intermediate.dense": ("ffn", "in"),
    "output.dense": ("ffn", "out"), "output.LayerNorm": ("ffn", "norm"),
}  # fmt: skip
_GPT2_PARTS = {
    "ln_1": ("self", "norm"), "attn.c_attn": ("self", "qkv"), "attn.c_proj": ("self", "o"),
    "ln_2": ("ffn", "norm"), "mlp.c_fc": ("ffn", "in"), "mlp.c_proj": ("ffn", "out"),
}  # fmt: skip


def concept_of(kind: str, name: str) -> Concept:
    """The concept of a real name."""
    path, _, leaf = name.rpartition(".")
    if kind in ("marian", "bart"):
        return _of_bart(path, leaf)
    if kind == "t5":
        return _of_t5(path, leaf)
    table = _GPT2_PARTS if kind == "gpt2" else _BERT_PARTS
    side = "" if kind == "gpt2" else "encoder"
    found = re.fullmatch(r".*\.?(?:layer|h)\.(\d+)\.(.+)", path)
    if found:
        return Concept(*table[found[2]], leaf, side, int(found[1]))
    flat = {
        "transformer.wte": "emb", "transformer.wpe": "pos", "transformer.ln_f": "finalnorm",
        "lm_head": "head", "embeddings.word_embeddings": "emb",
        "embeddings.position_embeddings": "pos", "embeddings.token_type_embeddings": "type",
        "embeddings.LayerNorm": "embnorm", "pooler.dense": "pool",
    }  # fmt: skip
    return Concept(flat[path], "", leaf, side if flat[path] == "embnorm" else "")


def _of_bart(path: str, leaf: str) -> Concept:
    found = re.fullmatch(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.+)", path)
    if found:
        side, layer, rest = found[1], int(found[2]), found[3]
        flat = {"fc1": ("ffn", "in"), "fc2": ("ffn", "out"), "final_layer_norm": ("ffn", "norm")}
        if rest in flat:
            return Concept(*flat[rest], leaf, side, layer)
        block = "self" if rest.startswith("self") else "cross"
        part = _BART_PARTS.get(rest.rpartition(".")[2], "norm")
        return Concept(block, part, leaf, side, layer)
    if leaf == "final_logits_bias":
        return Concept("bias", "", "bias")
    side = next((s for s in ("encoder", "decoder") if s in path), "")
    words = {"shared": "emb", "embed_tokens": "emb", "embed_positions": "pos",
             "layernorm_embedding": "embnorm", "lm_head": "head"}  # fmt: skip
    return Concept(words[path.rpartition(".")[2]], "", leaf, side)


def _of_t5(path: str, leaf: str) -> Concept:
    found = re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(.+)", path)
    if found:
        side, layer, rest = found[1], int(found[2]), found[4]
        blocks = ["self", "ffn"] if side == "encoder" else ["self", "cross", "ffn"]
        parts = {"wi": "in", "wo": "out", "layer_norm": "norm", "relative_attention_bias": "rel"}
        word = rest.rpartition(".")[2]
        return Concept(blocks[int(found[3])], parts.get(word, word), leaf, side, layer)
    side = path.split(".")[0] if "." in path else ""
    words = {"shared": "emb", "embed_tokens": "emb", "final_layer_norm": "finalnorm",
             "lm_head": "head"}  # fmt: skip
    return Concept(words[path.rpartition(".")[2]], "", leaf, side)


@dataclass(frozen=True)
class Renamed:
    """A renamed copy, and in words what was done to it."""

    tensors: dict[str, Tensor]
    how: str


def light(kind: str, model: nn.Module, rng: random.Random) -> Renamed:
    """Real names: prefix added or removed, layers renumbered, gamma and beta, packed, stacked."""
    prefix = rng.choice(["module.", "net.core.", "", "teacher."])
    strip = rng.random() < 0.4
    first = rng.choice([0, 1])
    gamma = rng.random() < 0.4
    pack = rng.random() < 0.6
    turned = rng.random() < 0.3
    stack = rng.random() < 0.15 and not pack
    named = {}
    for name, tensor in model.state_dict().items():
        new = name.removeprefix("model.").removeprefix("transformer.") if strip else name
        new = re.sub(r"\b(layers|layer|block|h)\.(\d+)\.",
                     lambda m: f"{m[1]}.{int(m[2]) + first}.", new, count=1)  # fmt: skip
        if gamma and re.search(r"norm|ln_", name, re.IGNORECASE):
            new = new.replace(".weight", ".gamma").replace(".bias", ".beta")
        named[prefix + new] = tensor.T if turned and _is_linear(kind, name, tensor) else tensor
    if pack:
        named = _packed(named, turned)
    if stack:
        named = _stacked(named)
    how = f"prefix={prefix!r} strip={strip} first={first} gamma={gamma} pack={pack} "
    return Renamed(_saved(named), how + f"turned={turned} stack={stack}")


def _is_linear(kind: str, name: str, tensor: Tensor) -> bool:
    concept = concept_of(kind, name)
    inside = concept.part in ("q", "k", "v", "o", "qkv", "in", "out") or concept.block == "pool"
    return inside and tensor.dim() == 2


def _packed(named: dict[str, Tensor], turned: bool) -> dict[str, Tensor]:
    words = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "query": "q", "key": "k", "value": "v",
             "q": "q", "k": "k", "v": "v"}  # fmt: skip
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        *path, word, leaf = name.split(".") if name.count(".") > 1 else ["", "", name]
        if word in words:
            key = f"{'.'.join(path)}.in_proj_{leaf}"
            groups.setdefault(key, {})[words[word]] = tensor
        else:
            groups[name] = {"": tensor}
    found = {}
    for key, parts in groups.items():
        dim = 1 if turned and key.endswith("weight") else 0
        found[key] = (
            parts[""] if "" in parts else torch.cat([parts["q"], parts["k"], parts["v"]], dim)
        )
    return found


def _stacked(named: dict[str, Tensor]) -> dict[str, Tensor]:
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in named.items():
        groups.setdefault(re.sub(r"\.(layers|layer|block|h)\.\d+\.", r".\1.", name, count=1),
                          []).append(tensor)  # fmt: skip
    return {n: torch.stack(ts) if re.search(r"\.(layers|layer|block|h)\.", n) and len(ts) > 1
            else ts[0] for n, ts in groups.items()}  # fmt: skip


def mixed(rng: random.Random) -> Style:
    """A style with each word from another toolkit."""
    named = [s for s in STYLES if s.name in ("fairseq", "opennmt", "joey", "torch", "sockeye")]
    slots = ["self.q", "self.k", "self.v", "self.o", "in", "out", "self.norm", "cross.norm",
             "ffn.norm", "self.rel"]  # fmt: skip
    base, blocks = rng.choice(named), rng.choice(named).blocks
    parts = {}
    for slot in slots:
        table = rng.choice(named).parts
        words = table.get(slot) or table[slot.rpartition(".")[2]]
        parts[slot if "norm" in slot else slot.rpartition(".")[2]] = words
    flat = {block: rng.choice(named).flat[block] for block in base.flat}
    leaves = rng.choice([(".weight", ".bias"), (".w", ".b"), (".kernel", ".bias")])
    norm_leaves = rng.choice([leaves, (".gamma", ".beta"), (".scale", ".offset")])
    return Style("mixed", base.layer, blocks, parts, flat, base.packed, base.kv, False, leaves,
                 norm_leaves, rng.random() < 0.3)  # fmt: skip


def styled(kind: str, model: nn.Module, style: Style, rng: random.Random) -> Renamed:
    """The names of another toolkit, with its layout of matrices and its packing."""
    prefix = rng.choice(["", "", "model.", "m/"]) if style.name != "marian" else ""
    first = style.first or rng.choice([0, 0, 1])
    pack = bool(style.packed) and (style.always_packed or rng.random() < 0.5)
    turned = style.turned != (kind == "gpt2")
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        concept = concept_of(kind, name)
        value = tensor.T if turned and _is_linear(kind, name, tensor) else tensor
        for word, part, piece in _parts(concept, value, style, pack):
            pieces.setdefault(prefix + _write(concept, word, style, first), {})[part] = piece
    named = {
        key: torch.cat([parts[part] for part in "qkv" if part in parts], -1 if style.turned else 0)
        if len(parts) > 1
        else next(iter(parts.values()))
        for key, parts in pieces.items()
    }
    if style.name == "marian":
        named = {n: t[None] if t.dim() == 1 else t for n, t in named.items()}
    how = f"{style.name}: prefix={prefix!r} first={first} pack={pack} turned={turned}"
    return Renamed(_saved(named), how)


def _parts(
    concept: Concept, value: Tensor, style: Style, pack: bool
) -> list[tuple[str, str, Tensor]]:
    """(word, part, tensor): what a tensor is stored as; parts under one name are one tensor."""
    kv = pack and style.kv and concept.block == "cross"
    if concept.part == "qkv" and not pack:
        pieces = value.chunk(3, -1 if style.turned else 0)
        return [(part, part, piece) for part, piece in zip("qkv", pieces, strict=True)]
    if concept.part in ("k", "v") and kv:
        return [("kv", concept.part, value)]
    if concept.part in ("q", "k", "v", "qkv") and pack and not kv:
        return [("qkv", concept.part, value)]
    return [(concept.part, concept.part, value)]


def _write(concept: Concept, part: str, style: Style, first: int) -> str:
    norm = part == "norm" or concept.block.endswith("norm")
    leaves = style.norm_leaves if norm and style.norm_leaves else style.leaves
    leaf = leaves[0 if concept.leaf == "weight" else 1]
    if concept.layer is None:
        alone = "shared" if concept.block == "emb" else style.sides[0]
        said = {"encoder": style.sides[0], "decoder": style.sides[1], "": alone}
        return style.flat[concept.block].format(s=said[concept.side]) + _joined(leaf)
    block = style.blocks.get(concept.block, "")
    path = style.layer[concept.side or "encoder"].format(n=concept.layer + first)
    if part in ("qkv", "kv"):
        text = (style.kv if part == "kv" else style.packed).format(b=block)
        return path + text + ("_" + concept.leaf if text.endswith("in_proj") else leaf)
    words = style.parts.get(f"{concept.block}.{part}", style.parts.get(part, "")).format(b=block)
    return path + (words.replace("?", leaf) if "?" in words else words + _joined(leaf))


def _joined(leaf: str) -> str:
    return leaf if leaf[0] in "./_" else f"_{leaf}"


def _saved(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in named.items()}
