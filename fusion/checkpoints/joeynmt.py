"""Joey NMT's Transformer: `.ckpt` files beside their `config.yaml`.

Layout (github.com/joeynmt/joeynmt, joeynmt/transformer_layers.py, encoders.py, decoders.py):
`model_state` holds the tensors; options are in `config.yaml` and tokens in `src_vocab.txt` and
`trg_vocab.txt` of the same directory. Epsilon 1e-6; positions are interleaved, start at 0 and lie
in the file. Before 2.0 always pre-norm with a norm at the end.

Checked: logits against a plain reference, from files written by this layout (pre- and post-norm,
tied and not). No file of Joey NMT was at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fusion.checkpoints.foreign import (
    UNSHARED,
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

_TABLES = {"encoder": "src_embed.lut.weight", "decoder": "trg_embed.lut.weight"}
_OUTPUT = "decoder.output_layer.weight"
_ATTENTIONS = {
    "encoder": {"self_attn": ("src_src_att", "layer_norm")},
    "decoder": {
        "self_attn": ("trg_trg_att", "x_layer_norm"),
        "encoder_attn": ("src_trg_att", "dec_layer_norm"),
    },
}
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "tanh": "tanh", "swish": "silu"}
_PLAIN: dict[str, Any] = {
    "type": ("transformer",),
    "alpha": (1, 1.0, None),
    "layer_norm": ("pre", "post", None),
    "activation": (*_ACTIVATIONS, None),
}


def open_joeynmt(path: str | Path, location: str | None = None) -> Source:
    """The tensors under `model_state`.

    Raises:
        SourceError: the file is no checkpoint of Joey NMT.
    """
    path = Path(path)
    tensors = part(load(path), "model_state", path, "Joey NMT")
    return StateSource(path, tensors, "joeynmt", location)


def describe_joeynmt(path: str | Path, config: str | Path | None = None) -> Foreign:
    """The host, rules and vocabularies of a checkpoint.

    Args:
        config: the model's `config.yaml`; beside the file by default

    Raises:
        SourceError: no Transformer of Joey NMT, or an option without a counterpart in the host.
    """
    path = Path(path)
    source = open_joeynmt(path)
    options = _read(Path(config) if config is not None else path.parent / "config.yaml")
    for side in ("encoder", "decoder"):
        refuse(path, fields(options.get(side)), _PLAIN)
    made = _config(path, source, options)
    rules: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        rules |= _side(source, side)
    copies, notes = _embeddings(source, made, options, rules)
    tokens = []
    for side, name in (("encoder", "src_vocab.txt"), ("decoder", "trg_vocab.txt")):
        file = path.parent / name
        known = file.read_text(encoding="utf-8").splitlines() if file.is_file() else None
        tokens.append(check_vocabulary(file, known, width(source, _TABLES[side], path)[0]))
        if known is None:
            notes.append(f"no {name} beside the file")
    return Foreign(
        toolkit="joeynmt",
        config=made | _ids(tokens[1]),
        rules=rules,
        ignore=repeated(copies),
        computed={"final_logits_bias": "zeros: Joey NMT has no output bias"},
        source_vocabulary=tokens[0],
        target_vocabulary=tokens[1],
        copies=copies,
        arguments=options,
        notes=tuple(notes),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = content["model"]
        return dict(model)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; it holds the model's options") from None
    except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise SourceError(f"{path}: no config of Joey NMT: {error}") from None


def _ids(tokens: list[str] | None) -> dict[str, Any]:
    ids = {token: i for i, token in enumerate(tokens or ["<unk>", "<pad>", "<s>", "</s>"])}
    return {
        **{"pad_token_id": ids.get("<pad>", 1), "bos_token_id": ids.get("<s>", 2)},
        **{"eos_token_id": ids.get("</s>", 3), "decoder_start_token_id": ids.get("<s>", 2)},
        "forced_eos_token_id": None,
    }


def _config(path: Path, source: Source, options: dict[str, Any]) -> dict[str, Any]:
    rows, dim = width(source, _TABLES["encoder"], path)
    target_rows, _ = width(source, _TABLES["decoder"], path)
    stacks = {side: fields(options.get(side)) for side in ("encoder", "decoder")}
    scales = {bool(fields(s.get("embeddings")).get("scale")) for s in stacks.values()}
    acts = {str(s.get("activation") or "relu") for s in stacks.values()}
    if len(scales) > 1 or len(acts) > 1:
        raise SourceError(f"{path}: encoder and decoder differ in embeddings.scale or activation")
    tied = bool(options.get("tied_embeddings")), bool(options.get("tied_softmax"))
    lengths = [width(source, f"{side}.pe.pe", path)[1] for side in stacks]
    made: dict[str, Any] = {
        **{"vocab_size": rows, "decoder_vocab_size": target_rows, "d_model": dim},
        **{"share_encoder_decoder_embeddings": all(tied), "tie_word_embeddings": tied[1]},
        "max_position_embeddings": lengths[0],
        "max_target_positions": None if lengths[0] == lengths[1] else lengths[1],
        "position_layout": "interleaved",
        "scale_embedding": scales.pop(),
        "activation_function": _ACTIVATIONS[acts.pop()],
        "layer_norm_eps": 1e-6,
        "dropout": float(stacks["encoder"].get("dropout") or 0.0),
        "attention_dropout": float(stacks["encoder"].get("dropout") or 0.0),
        "activation_dropout": float(stacks["encoder"].get("dropout") or 0.0),
    }
    for side, own in stacks.items():
        final = f"{side}.layer_norm.weight" in source.tensors()
        kind = own.get("layer_norm") or ("pre" if final else "post")
        made |= {
            f"{side}_layers": int(own["num_layers"]),
            f"{side}_attention_heads": int(own["num_heads"]),
            f"{side}_ffn_dim": int(own["ff_size"]),
            f"{side}_normalize_before": kind == "pre",
            f"{side}_final_norm": final,
        }
    return made


def _side(source: Source, side: str) -> dict[str, Any]:
    here, there = f"model.{side}.layers.{{i}}", f"{side}.layers.{{i}}"
    table = source.tensors()[f"{side}.pe.pe"].shape
    rules: dict[str, Any] = {
        f"model.{side}.embed_positions.weight": {
            "from": f"{side}.pe.pe",
            "ops": [{"reshape": {"shape": list(table[1:])}}],
        }
    }
    if f"{side}.layer_norm.weight" in source.tensors():
        rules[f"model.{side}.layer_norm.{{p}}"] = f"{side}.layer_norm.{{p}}"
    for attention, (called, norm) in _ATTENTIONS[side].items():
        for letter in ("q", "k", "v", "out"):
            layer = "output_layer" if letter == "out" else f"{letter}_layer"
            rules[f"{here}.{attention}.{letter}_proj.{{p}}"] = f"{there}.{called}.{layer}.{{p}}"
        rules[f"{here}.{attention}_layer_norm.{{p}}"] = f"{there}.{norm}.{{p}}"
    feed = f"{there}.feed_forward"
    rules[f"{here}.fc1.{{p}}"] = f"{feed}.pwff_layer.0.{{p}}"
    rules[f"{here}.fc2.{{p}}"] = f"{feed}.pwff_layer.3.{{p}}"
    rules[f"{here}.final_layer_norm.{{p}}"] = f"{feed}.layer_norm.{{p}}"
    return rules


def _embeddings(
    source: Source, config: dict[str, Any], options: dict[str, Any], rules: dict[str, Any]
) -> tuple[dict[str, str], list[str]]:
    tables = _TABLES["encoder"], _TABLES["decoder"]
    copies = embedding_rules(source, config, rules, tables, [_OUTPUT])
    split = options.get("tied_embeddings") and not config["share_encoder_decoder_embeddings"]
    return copies, [UNSHARED] if split else []
