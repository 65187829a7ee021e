"""OpenNMT-py's Transformer: `.pt` checkpoints of 1.x to 3.x.

Layout (github.com/OpenNMT/OpenNMT-py, onmt/models/model_saver.py, onmt/modules, onmt/encoders and
onmt/decoders/transformer.py): `model` and `generator` hold the tensors, `opt` the options, `vocab`
the tokens (plain lists from 3.0 on). Always pre-norm with a norm at the end, epsilon 1e-6;
positions are interleaved, start at 0 and lie in the file.

Checked: logits against a plain reference, from files written by this layout (generator of 1.x and
of 3.x, shared and separate embeddings, without biases). No file of OpenNMT-py was at hand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fusion.checkpoints.foreign import (
    UNSHARED,
    Foreign,
    StateSource,
    check_vocabulary,
    embedding_rules,
    fields,
    layers,
    load,
    part,
    refuse,
    repeated,
    width,
)
from fusion.checkpoints.source import Source
from fusion.errors import SourceError

_TABLE = "{}.embeddings.make_embedding.emb_luts.0.weight"
_POSITIONS = "{}.embeddings.make_embedding.pe.pe"
_OFF = (False, None, 0)
_PLAIN: dict[str, Any] = {
    "encoder_type": ("transformer",),
    "decoder_type": ("transformer",),
    "model_type": ("text", None),
    "max_relative_positions": _OFF,
    "relative_positions_buckets": _OFF,
    "self_attn_type": ("scaled-dot", "scaled-dot-flash", None),
    "copy_attn": _OFF,
    "parallel_residual": _OFF,
    "layer_norm": ("standard", None),
    "num_kv": _OFF,
    "multiquery": _OFF,
    "num_experts": _OFF,
    "add_ffnbias": (True, None),
    "pos_ffn_activation_fn": ("relu", "gelu", None),
}
_LETTERS = {"q": "linear_query", "k": "linear_keys", "v": "linear_values", "out": "final_linear"}
_KINDS = {
    "encoder": {"self_attn": ("self_attn", "layer_norm")},
    "decoder": {
        "self_attn": ("self_attn", "layer_norm_1"),
        "encoder_attn": ("context_attn", "layer_norm_2"),
    },
}
_STACK = {"encoder": "encoder.transformer", "decoder": "decoder.transformer_layers"}
_SPECIAL = ["<unk>", "<blank>", "<s>", "</s>"]  # ids 0 to 3 before 3.0


def open_opennmt(path: str | Path, location: str | None = None) -> Source:
    """The tensors under `model`, and those under `generator` as `generator.*`.

    Raises:
        SourceError: the file is no OpenNMT-py checkpoint.
    """
    path = Path(path)
    return _source(path, load(path), location)


def _source(path: Path, state: Mapping[str, Any], location: str | None = None) -> StateSource:
    tensors = part(state, "model", path, "OpenNMT-py")
    generator = state.get("generator") or {}
    named = {f"generator.{k}": v for k, v in generator.items()}
    return StateSource(path, tensors | named, "opennmt", location)


def describe_opennmt(path: str | Path) -> Foreign:
    """The host, rules and vocabularies of a checkpoint.

    Raises:
        SourceError: no OpenNMT-py Transformer, or an option that the host has no counterpart of.
    """
    path = Path(path)
    state = load(path)
    source = _source(path, state)
    names = source.tensors()
    options = fields(state.get("opt"))
    refuse(path, options, _PLAIN)
    if any(name.endswith(".a_2") for name in names):
        raise SourceError(f"{path}: layer norms of before 1.0 (a_2) divide by std + eps")
    vocabulary = state.get("vocab")
    tokens = [_tokens(vocabulary, side) for side in ("src", "tgt")]
    config = _config(path, source, options, tokens[1], _start(vocabulary))
    rules: dict[str, Any] = {}
    computed: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        rules |= _layers(side)
        target, table = f"model.{side}.embed_positions.weight", _POSITIONS.format(side)
        if table in names:
            rules[target] = {"from": table, "ops": [{"reshape": {"shape": _rows(source, table)}}]}
        elif config["position_embeddings"]:
            computed[target] = "sinusoidal, interleaved"
    copies, notes = _embeddings(source, config, options, rules, computed)
    for side, table, known in (("encoder", "src", tokens[0]), ("decoder", "tgt", tokens[1])):
        check_vocabulary(path, known, width(source, _TABLE.format(side), path)[0])
        if known is None:
            notes.append(f"no plain list of the {table} tokens in the file (before 3.0)")
    ignore = repeated(copies)
    if any(name.endswith(".mask") for name in names):
        ignore["decoder.transformer_layers.{i}.mask"] = "a constant: no future tokens"
    return Foreign(
        toolkit="opennmt",
        config=config,
        rules=rules,
        ignore=ignore,
        computed=computed,
        source_vocabulary=tokens[0],
        target_vocabulary=tokens[1],
        copies=copies,
        arguments=options,
        notes=tuple(notes),
    )


def _tokens(vocabulary: Any, side: str) -> list[str] | None:
    found = vocabulary.get(side) if isinstance(vocabulary, Mapping) else None
    plain = isinstance(found, list) and all(isinstance(token, str) for token in found)
    return list(found) if found is not None and plain else None


def _start(vocabulary: Any) -> str:
    found = vocabulary.get("decoder_start_token") if isinstance(vocabulary, Mapping) else None
    return found if isinstance(found, str) else "<s>"


def _rows(source: Source, table: str) -> list[int]:
    shape = source.tensors()[table].shape
    return [max(shape[:-1]), shape[-1]]


def _one(value: Any, default: float) -> float:
    """Dropouts may be lists, one value per stage of training; the last one counts."""
    if isinstance(value, list):
        return float(value[-1]) if value else default
    return default if value is None else float(value)


def _config(
    path: Path, source: Source, options: dict[str, Any], tokens: list[str] | None, start: str
) -> dict[str, Any]:
    names = source.tensors()
    rows, dim = width(source, _TABLE.format("encoder"), path)
    target_rows, _ = width(source, _TABLE.format("decoder"), path)
    inner = width(source, "encoder.transformer.0.feed_forward.w_1.weight", path)[0]
    ids = {token: i for i, token in enumerate(tokens or _SPECIAL)}
    heads = int(options.get("heads") or 8)
    positions = [_POSITIONS.format(side) for side in ("encoder", "decoder")]
    placed = bool(options.get("position_encoding")) or positions[0] in names
    lengths = [_rows(source, table)[0] if table in names else 5000 for table in positions]
    both = bool(options.get("share_embeddings")), bool(options.get("share_decoder_embeddings"))
    concat = options.get("position_encoding_type") == "SinusoidalConcat"
    return {
        **{"vocab_size": rows, "decoder_vocab_size": target_rows, "d_model": dim},
        **{"share_encoder_decoder_embeddings": all(both), "tie_word_embeddings": both[1]},
        **{"pad_token_id": ids.get("<blank>", 1), "bos_token_id": ids.get("<s>")},
        **{"eos_token_id": ids.get("</s>"), "decoder_start_token_id": ids.get(start)},
        "forced_eos_token_id": None,
        "encoder_layers": layers(names, "encoder.transformer."),
        "decoder_layers": layers(names, "decoder.transformer_layers."),
        **{"encoder_attention_heads": heads, "decoder_attention_heads": heads},
        **{"encoder_ffn_dim": inner, "decoder_ffn_dim": inner},
        **{f"{s}_normalize_before": True for s in ("encoder", "decoder")},
        **{f"{s}_final_norm": True for s in ("encoder", "decoder")},
        "position_embeddings": placed,
        "position_layout": "tensor2tensor" if concat else "interleaved",
        "max_position_embeddings": lengths[0],
        "max_target_positions": None if lengths[0] == lengths[1] else lengths[1],
        "scale_embedding": placed,
        "attention_bias": "encoder.transformer.0.self_attn.linear_query.bias" in names,
        "layer_norm_eps": float(options.get("norm_eps") or 1e-6),
        "activation_function": options.get("pos_ffn_activation_fn") or "relu",
        "dropout": _one(options.get("dropout"), 0.0),
        "activation_dropout": _one(options.get("dropout"), 0.0),
        "attention_dropout": _one(options.get("attention_dropout"), 0.0),
    }


def _layers(side: str) -> dict[str, Any]:
    here, there = f"model.{side}.layers.{{i}}", f"{_STACK[side]}.{{i}}"
    rules: dict[str, Any] = {f"model.{side}.layer_norm.{{p}}": f"{side}.layer_norm.{{p}}"}
    for attention, (called, norm) in _KINDS[side].items():
        for letter, linear in _LETTERS.items():
            rules[f"{here}.{attention}.{letter}_proj.{{p}}"] = f"{there}.{called}.{linear}.{{p}}"
        rules[f"{here}.{attention}_layer_norm.{{p}}"] = f"{there}.{norm}.{{p}}"
    for mine, theirs in (("fc1", "w_1"), ("fc2", "w_2"), ("final_layer_norm", "layer_norm")):
        rules[f"{here}.{mine}.{{p}}"] = f"{there}.feed_forward.{theirs}.{{p}}"
    return rules


def _embeddings(
    source: Source,
    config: dict[str, Any],
    options: dict[str, Any],
    rules: dict[str, Any],
    computed: dict[str, str],
) -> tuple[dict[str, str], list[str]]:
    names: Collection[str] = source.tensors()
    tables = _TABLE.format("encoder"), _TABLE.format("decoder")
    layer = "generator.0" if "generator.0.weight" in names else "generator"
    copies = embedding_rules(source, config, rules, tables, [f"{layer}.weight"])
    split = options.get("share_embeddings") and not config["share_encoder_decoder_embeddings"]
    if f"{layer}.bias" in names:
        grown = [{"reshape": {"shape": [1, config["decoder_vocab_size"]]}}]
        rules["final_logits_bias"] = {"from": f"{layer}.bias", "ops": grown}
    else:
        computed["final_logits_bias"] = "zeros: the generator has no bias"
    return copies, [UNSHARED] if split else []
