"""What the words of a tensor's name say, in whatever toolkit's vocabulary; pure strings.

A name is read into a few slots (side, block, kind, leaf), so that `fc1`, `intermediate.dense`, `wi`
and `linear1` mean one thing. A word that is not known leaves its slot empty: it speaks neither for
nor against. The vocabulary is that of transformers, fairseq, OpenNMT-py, Joey NMT, tensor2tensor,
Marian and torch's own nn.Transformer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True)
class Meaning:
    """What a name says; None where it says nothing.

    Attributes:
        side: enc or dec
        block: self, cross, attn (either), ffn; outside of layers emb or final, for norms
        kind: norm, emb, pos, q, k, v, o, qkv, kv, ffn_in, ffn_out, ...
        leaf: w (weight, kernel, gamma) or b (bias, beta)
        ordinal: the last number of the module, as in `layer_norm_2`
        module: the name without its leaf; tensors of one module have it in common
    """

    side: str | None
    block: str | None
    kind: str | None
    leaf: str | None
    ordinal: int | None
    module: str
    words: frozenset[str]


def words(component: str) -> list[str]:
    """Lower-case words of a name's component: `LayerNorm`, `layer_norm_1` and `fc1` come apart."""
    return [word.lower() for word in _WORD.findall(component)]


def normal(name: str) -> str:
    """Words joined by `_` within a component, and by `.` between components."""
    parts = ("_".join(words(part)) for part in re.split(r"[./]", name))
    return ".".join(part for part in parts if part)


def _table(**rows: str) -> list[tuple[str, re.Pattern[str]]]:
    return [(k, re.compile(rf"(?<![a-z0-9])(?:{v})(?![a-z0-9])")) for k, v in rows.items()]


def _first(table: list[tuple[str, re.Pattern[str]]], text: str) -> str | None:
    return next((key for key, pattern in table if pattern.search(text)), None)


_SIDES = _table(enc=r"encoder|enc|src|source", dec=r"decoder|dec|trg|tgt|target")
_NORM = r"layer_?norms?|norms?|ln|rms_?norm|batch_?norm|layer_prepostprocess"
_ATT = r"(?:attn|attention|att)"
_BLOCKS = [
    *_table(
        self=rf"input_layer_?norm|x_layer_norm|src_src_{_ATT}|(?:trg_trg|tgt_tgt)_{_ATT}",
        cross=r"dec_layer_norm",
        ffn=r"post_attention_layer_?norm|final_layer_?norm",
    ),
    *_table(
        cross=rf"cross_?(?:{_ATT}|mha)?|enc(?:oder)?_{_ATT}|enc_?dec_{_ATT}|context(?:_{_ATT})?"
        rf"|src_{_ATT}|(?:src|source)_(?:trg|tgt|target)_{_ATT}|multihead_attn|inter_{_ATT}"
        rf"|memory_{_ATT}|crossattention",
        self=rf"self(?:_{_ATT})?|sa|slf_{_ATT}|{_ATT}\.self",
        attn=rf"{_ATT}|mha|multi_?head_{_ATT}|in_proj|qkv|[wb][qkv]",
        ffn=r"ffn|ffw|feed_?forward|ff|mlp|intermediate|dense_relu_dense|pwff|positionwise|fc"
        r"|transition",
    ),
]
_BERT_OUTPUT = re.compile(r"^output[._](?:dense|layer_norm)")
_EVERYWHERE = [
    *_table(norm=_NORM),
    *_table(
        rel=r"rel(?:ative)?_?(?:attention|pos\w*|emb\w*)?(?:_bias|_embedding)|relpos_bias",
        type=r"(?:token_)?type(?:_emb\w*)?|segments?(?:_emb\w*)?|seg_emb\w*",
        pos=r"(?:embed_|emb_)?(?:pos|positions?|positional)(?:_\w+)?|wpe|pe|\w+_pos",
    ),
]
_OUTSIDE = _table(
    head=r"lm_head|generator|output_projection|logits?|embed_out|classifier|softmax|output_layer"
    r"|decoder_out|vocab_proj\w*|final_logits_bias",
    pool=r"pooler|pool\w*",
    emb=r"word_emb\w*|embed_\w+|shared|wte|lut|wemb|tok\w*_emb\w*|embed\w*|emb|\w+_emb|\w+_embed",
)
_IN_LAYERS = _table(
    qkv=r"in_proj|qkv(?:_\w+)?|c_attn|query_key_value|wqkv|to_qkv|\w+_qkv",
    kv=r"kv(?:_\w+)?|key_value|to_kv|\w+_kv|c_kv",
    q=r"q|query|queries|[wb]q|q_\w+|\w+_(?:q|query)|query_\w+",
    k=r"k|keys?|[wb]k|k_\w+|\w+_(?:k|keys?)|key_\w+",
    v=r"v|values?|[wb]v|v_\w+|\w+_(?:v|values?)|value_\w+",
    gate=r"gate(?:_proj)?",
    ffn_in=r"(?:fc|[wb]|linear|lin|conv|ffn|ff|dense|layer)_1|wi(?:_\d)?|c_fc|intermediate|up_proj"
    r"|pwff_layer[._]0|filter|h_to_4_h|ffn_in|conv_in|in_layer|expand",
    ffn_out=r"(?:fc|[wb]|linear|lin|conv|ffn|ff|dense|layer)_2|down_proj|pwff_layer[._]3"
    r"|4_h_to_h|ffn_out|conv_out|contract",
)
_OUT = _table(out=r"[wb]?o|o_\w+|out|out_\w+|output|output_\w+|c_proj|proj|dense|final_\w+|to_out")
_LEAVES = _table(
    w=r"(?:weights?|kernel|gamma|scale|gain|g|w(?:_\d)?|w[qkvo])$",
    b=r"(?:bias|beta|offset|shift|b(?:_\d)?|b[qkvo])$",
)


def read(name: str, tower: str | None = None) -> Meaning:
    """Read a name, or the part of it that follows the layer's number.

    Args:
        tower: what comes before the layer's number; None for a name outside of layers
    """
    text = normal(name)
    leaf = _first(_LEAVES, text)
    last = text.rpartition(".")[2].rpartition("_")[2]
    module = _module(text) if leaf is not None else text
    kind = _first(_EVERYWHERE, text)
    block: str | None
    if tower is None:
        kind = kind or _first(_OUTSIDE, text) or _first(_IN_LAYERS, module)
        block = _outer_block(text) if kind == "norm" else None
        block = block or _first(_BLOCKS, text)
        side = _first_in_text(text)
    else:
        block = "ffn" if _BERT_OUTPUT.match(text) else _first(_BLOCKS, text)
        kind = kind or _kind_in_layer(module, text, block)
        if block is None and kind in ("q", "k", "v", "qkv", "kv", "o"):
            block = "attn"
        elif block is None and kind in ("ffn_in", "ffn_out", "gate"):
            block = "ffn"
        side = _first_in_text(normal(tower))
    numbers = re.findall(r"\d+", module)
    found = frozenset(re.findall(r"[a-z]+", text)) - ({last} if leaf else set())
    return Meaning(side, block, kind, leaf, int(numbers[-1]) if numbers else None, module, found)


def _module(text: str) -> str:
    """The text without its last word, or without the w or b of `wq`, `b_1`."""
    short = re.search(r"(?<![a-z0-9])[wb]_?([qkvo]|\d)$", text)
    if short:
        return f"{text[: short.start()]}{short[1]}"
    return re.sub(r"[._]?[a-z]+$", "", text)


def _kind_in_layer(module: str, text: str, block: str | None) -> str | None:
    kind = _first(_IN_LAYERS, module) or _first(_IN_LAYERS, text)
    if kind in ("ffn_in", "ffn_out") and block in ("self", "cross", "attn"):
        kind = None
    if kind is None and _first(_OUT, module or text):
        return "ffn_out" if block == "ffn" else "o" if block is not None else None
    return kind


def _outer_block(text: str) -> str | None:
    if re.search(r"emb", text):
        return "emb"
    return "final" if re.search(r"final|_f(?![a-z])|after|last", text) else None


def _first_in_text(text: str) -> str | None:
    """enc or dec, whichever is said first."""
    hits = [(found.start(), side) for side, p in _SIDES if (found := p.search(text))]
    return min(hits)[1] if hits else None


_WEIGHTS = {"side": (3.0, -5.0), "kind": (4.0, -6.0), "leaf": (2.0, -4.0)}
_NEAR = {
    frozenset(("attn", "self")): 1.5,
    frozenset(("attn", "cross")): 0.5,
    frozenset(("final", "ffn")): 1.0,  # `final_layer_norm` is either
    frozenset(("emb", "head")): -1.0,  # one table, where they are tied
}


def agreement(a: Meaning, b: Meaning) -> float:
    """How far two names say the same: about 10 for full agreement, below 0 for contradiction."""
    score = 0.0
    for slot, (same, other) in _WEIGHTS.items():
        score += _compare(getattr(a, slot), getattr(b, slot), same, other)
    score += _compare(a.block, b.block, 3.0, -4.0)
    if a.kind == b.kind and a.block in (None, b.block):
        score += _compare(a.ordinal, b.ordinal, 0.5, -0.5)
    union = a.words | b.words
    return score + (2.0 * len(a.words & b.words) / len(union) if union else 0.0)


def is_named(a: Meaning, b: Meaning, said: float) -> bool:
    """Whether names speak for a pair with more than that both are weights, or biases.

    Args:
        said: their agreement, with whatever else names added to it
    """
    leaf = _WEIGHTS["leaf"][0] if a.leaf is not None and a.leaf == b.leaf else 0.0
    return said - leaf >= 1.0


def contradictions(a: Meaning, b: Meaning) -> list[str]:
    """What the names disagree in, for a reader: `q against k`."""
    return [
        f"{here} against {there}"
        for slot in ("side", "block", "kind", "leaf")
        if (here := getattr(a, slot)) is not None
        and (there := getattr(b, slot)) is not None
        and here != there
        and frozenset((here, there)) not in _NEAR
    ]


def _compare(a: object, b: object, same: float, other: float) -> float:
    if a is None or b is None:
        return 0.0
    if a == b:
        return same
    return _NEAR.get(frozenset((str(a), str(b))), other)


def is_ordered(names: Iterable[str]) -> bool:
    """Whether an order of names can tell anything: alphabetical order cannot."""
    listed = list(names)
    return len(listed) < 3 or listed != sorted(listed)
