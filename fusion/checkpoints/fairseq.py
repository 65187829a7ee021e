"""fairseq's Transformer: checkpoints of 0.6 to 0.12.

Layout (fairseq/models/transformer.py, fairseq/modules/multihead_attention.py): `model` holds the
tensors; `args` (argparse.Namespace, up to 0.9) or `cfg` (a dict, from 0.10 on) the options. q, k
and v are packed in `in_proj_weight` before 0.9 and split from then on; the output is
`decoder.embed_out` or, later, `decoder.output_projection.weight`. Positions count real tokens from
padding_idx + 1, sinusoidal ones as in tensor2tensor.

Checked: a packed file written by fairseq with the logits of its model, a split file that others
trained; pre-norm, learned positions, shared and old-style tensors and `cfg` against a plain
reference, from files written by this layout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fusion.checkpoints.fairseq_files import read_dictionary
from fusion.checkpoints.foreign import (
    Foreign,
    StateSource,
    check_vocabulary,
    embedding_rules,
    fields,
    load,
    part,
    refuse,
    repeated,
    width,
)
from fusion.checkpoints.source import Source
from fusion.errors import SourceError

PAD, BOS, EOS = 1, 0, 2
ACTIVATIONS = {
    **{"relu": "relu", "gelu": "gelu", "swish": "silu", "tanh": "tanh", "linear": "linear"},
    **{"gelu_fast": "gelu_new", "gelu_accurate": "gelu_new"},
}
_FLAG = (False, None, 0)
_PLAIN: dict[str, Any] = {
    "adaptive_input": _FLAG,
    "adaptive_softmax_cutoff": (None,),
    "cross_self_attention": _FLAG,
    "no_cross_attention": _FLAG,
    "char_inputs": _FLAG,
    "activation_fn": (*ACTIVATIONS,),
}
# Norms before 0.6: old index -> name, per side.
_OLD_NORMS = {
    "encoder": {"self_attn_layer_norm": 0, "final_layer_norm": 1},
    "decoder": {"self_attn_layer_norm": 0, "encoder_attn_layer_norm": 1, "final_layer_norm": 2},
}


def open_fairseq(path: str | Path, location: str | None = None) -> Source:
    """The tensors under `model`.

    Raises:
        SourceError: the file is no fairseq checkpoint.
    """
    path = Path(path)
    return StateSource(path, part(load(path), "model", path, "fairseq"), "fairseq", location)


def describe_fairseq(path: str | Path, dictionaries: str | Path | None = None) -> Foreign:
    """The host, rules and vocabularies of a checkpoint.

    Args:
        dictionaries: directory of `dict.LANG.txt`; beside the file, or in its `data-bin`, by
            default

    Raises:
        SourceError: no fairseq Transformer, or an option that the host has no counterpart of.
    """
    path = Path(path)
    state = load(path)
    source = StateSource(path, part(state, "model", path, "fairseq"), "fairseq")
    options = read_options(state, path)
    where = Path(dictionaries) if dictionaries is not None else path.parent
    return describe(source, path, options, where)


def read_options(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options of the model and the task, from `args` or `cfg`.

    Raises:
        SourceError: there are none.
    """
    if state.get("args") is not None:
        return fields(state["args"])
    cfg = fields(state.get("cfg"))
    options = {**fields(cfg.get("task")), **fields(cfg.get("model"))}
    if not options:
        raise SourceError(f"{path}: no fairseq checkpoint: neither args nor cfg")
    return options


def describe(source: Source, path: Path, options: dict[str, Any], where: Path) -> Foreign:
    """As `describe_fairseq`, for tensors that are open already."""
    refuse(path, options, _PLAIN)
    names = set(source.tensors())
    config = _config(source, path, options)
    if config["position_embeddings"] is False:
        names -= {f"{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    rules: dict[str, Any] = {}
    computed = {"final_logits_bias": "zeros: fairseq has no output bias"}
    for side in ("encoder", "decoder"):
        rules |= layer_rules(names, side)
        if f"{side}.embed_positions.weight" in names:
            rules[f"model.{side}.embed_positions.weight"] = f"{side}.embed_positions.weight"
        elif config["position_embeddings"]:
            computed[f"model.{side}.embed_positions.weight"] = "sinusoidal, as in tensor2tensor"
    copies = _embeddings(source, config, rules)
    vocabularies = _vocabularies(source, path, options, where)
    return Foreign(
        toolkit="fairseq",
        config=config,
        rules=rules,
        ignore=_ignored(names, copies),
        computed=computed,
        source_vocabulary=vocabularies[0],
        target_vocabulary=vocabularies[1],
        copies=copies,
        arguments=options,
        notes=_notes(vocabularies),
    )


def _config(source: Source, path: Path, options: dict[str, Any]) -> dict[str, Any]:
    names = source.tensors()
    rows, dim = width(source, "encoder.embed_tokens.weight", path)
    target_rows, target_dim = width(source, "decoder.embed_tokens.weight", path)
    if dim != target_dim or any("project_" in name for name in names):
        raise SourceError(f"{path}: encoder and decoder widths differ, which no host here has")
    get = options.get
    shared = bool(get("share_all_embeddings"))
    tied = shared or bool(get("share_decoder_input_output_embed"))
    relu = get("relu_dropout") or 0.0
    return {
        **{"vocab_size": rows, "decoder_vocab_size": target_rows, "d_model": dim},
        **{"share_encoder_decoder_embeddings": shared, "tie_word_embeddings": tied},
        **{"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS},
        **{"decoder_start_token_id": EOS, "forced_eos_token_id": None},
        **_side(options, names, "encoder"),
        **_side(options, names, "decoder"),
        **_lengths(options),
        "position_embeddings": not get("no_token_positional_embeddings"),
        "position_offset": PAD + 1,
        "normalize_embeddings": "encoder.layernorm_embedding.weight" in names,
        "scale_embedding": not get("no_scale_embedding"),
        "activation_function": ACTIVATIONS[get("activation_fn") or "relu"],
        "dropout": float(get("dropout") or 0.0),
        "attention_dropout": float(get("attention_dropout") or 0.0),
        "activation_dropout": float(get("activation_dropout") or relu),
    }


def _lengths(options: dict[str, Any]) -> dict[str, Any]:
    source = int(options.get("max_source_positions") or 1024)
    target = int(options.get("max_target_positions") or 1024)
    return {
        "max_position_embeddings": source,
        "max_target_positions": None if target == source else target,
    }


def _side(options: dict[str, Any], names: Collection[str], side: str) -> dict[str, Any]:
    stack = options.get(side)  # cfg of 0.12 nests the options of a side
    own = fields(stack) if isinstance(stack, Mapping) else {}
    own = {f"{side}_{k}": v for k, v in own.items()} | options
    return {
        f"{side}_layers": int(own[f"{side}_layers"]),
        f"{side}_attention_heads": int(own[f"{side}_attention_heads"]),
        f"{side}_ffn_dim": int(own[f"{side}_ffn_embed_dim"]),
        f"{side}_layerdrop": float(own.get(f"{side}_layerdrop") or 0.0),
        f"{side}_normalize_before": bool(own.get(f"{side}_normalize_before")),
        f"{side}_learned_positions": f"{side}.embed_positions.weight" in names,
        f"{side}_final_norm": f"{side}.layer_norm.weight" in names,
    }


def layer_rules(names: Collection[str], side: str, prefix: str = "model.") -> dict[str, Any]:
    """The rules of one side's layers and norms."""
    there, here = f"{side}.layers.{{i}}", f"{prefix}{side}.layers.{{i}}"
    rules: dict[str, Any] = {f"{here}.{m}.{{p}}": f"{there}.{m}.{{p}}" for m in ("fc1", "fc2")}
    old = any(".layer_norms." in name for name in names)
    for norm, index in _OLD_NORMS[side].items():
        called = f"layer_norms.{index}" if old else norm
        rules[f"{here}.{norm}.{{p}}"] = f"{there}.{called}.{{p}}"
    for attention in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
        packed = f"{side}.layers.0.{attention}.in_proj_weight" in names
        target, source = f"{here}.{attention}", f"{there}.{attention}"
        rules |= attention_rules(target, source, "packed" if packed else "split")
    for norm in ("layer_norm", "layernorm_embedding"):
        if f"{side}.{norm}.weight" in names:
            rules[f"{prefix}{side}.{norm}.{{p}}"] = f"{side}.{norm}.{{p}}"
    return rules


def attention_rules(target: str, source: str, layout: str) -> dict[str, Any]:
    """Rules of one attention.

    Args:
        layout: `split`: q_proj.weight; `packed`: in_proj_weight; `apart`: q_proj_weight, with
            packed biases (keys and values of another width)
    """
    rules: dict[str, Any] = {f"{target}.out_proj.{{p}}": f"{source}.out_proj.{{p}}"}
    for index, letter in enumerate("qkv"):
        piece = {"split": {"parts": 3, "index": index, "dim": 0}}
        if layout == "split":
            rules[f"{target}.{letter}_proj.{{p}}"] = f"{source}.{letter}_proj.{{p}}"
            continue
        weight: Any = {"from": f"{source}.in_proj_weight", "ops": [piece]}
        if layout == "apart":
            weight = f"{source}.{letter}_proj_weight"
        rules[f"{target}.{letter}_proj.weight"] = weight
        rules[f"{target}.{letter}_proj.bias"] = {"from": f"{source}.in_proj_bias", "ops": [piece]}
    return rules


def _embeddings(source: Source, config: dict[str, Any], rules: dict[str, Any]) -> dict[str, str]:
    """Adds the rules of embeddings and output; returns the tensors that repeat another."""
    names = source.tensors()
    outputs = [n for n in ("decoder.output_projection.weight", "decoder.embed_out") if n in names]
    tables = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
    return embedding_rules(source, config, rules, tables, outputs)


def _ignored(names: Collection[str], copies: Mapping[str, str]) -> dict[str, str]:
    ignore = repeated(copies)
    for side in ("encoder", "decoder"):
        if f"{side}.version" in names:
            ignore[f"{side}.version"] = "a format number, no parameter"
        for kind in ("_float_tensor", "weights"):
            if f"{side}.embed_positions.{kind}" in names:
                ignore[f"{side}.embed_positions.{kind}"] = "no parameter: positions are computed"
    return ignore


def _vocabularies(
    source: Source, path: Path, options: dict[str, Any], where: Path
) -> tuple[list[str] | None, list[str] | None]:
    found: list[list[str] | None] = []
    for side, lang in (("encoder", "source_lang"), ("decoder", "target_lang")):
        name = f"dict.{options.get(lang)}.txt"
        file = next((d / name for d in (where, where / "data-bin") if (d / name).is_file()), None)
        rows = width(source, f"{side}.embed_tokens.weight", path)[0]
        tokens = read_dictionary(file) if file is not None else None
        found.append(check_vocabulary(file or path, tokens, rows))
    return found[0], found[1]


def _notes(vocabularies: tuple[list[str] | None, list[str] | None]) -> tuple[str, ...]:
    missing = [s for s, v in zip(("source", "target"), vocabularies, strict=True) if v is None]
    return tuple(f"no dict.LANG.txt of the {side} side was found" for side in missing)
