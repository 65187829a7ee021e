"""Sockeye 3's Transformer: a model directory with `params.best`, `config` and vocabularies.

Layout (github.com/awslabs/sockeye, sockeye/layers_pt.py, transformer_pt.py, model_pt.py of 3.0):
`params.best` is a torch state dict; attention has no biases; `ff_in` packs q and, head by head,
k and v (`[k of head 0, v of head 0, k of head 1, ...]`), `ff_kv` likewise. Epsilon 1e-6; positions
are sin | cos halves with 10000^(-2i / D), start at 0 and lie in the file. `config` is YAML with
tags.

Checked: logits against a plain reference, from files written by this layout (norms before and
after, all kinds of tying). No file of Sockeye was at hand; that later releases still interleave k
and v in the file is from memory of the code.
"""

from __future__ import annotations

import json
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
    refuse,
    repeated,
    width,
)
from fusion.checkpoints.source import Source
from fusion.errors import SourceError

_TABLES = {"encoder": "embedding_source.embedding.weight",
           "decoder": "embedding_target.embedding.weight"}  # fmt: skip
_OUTPUT = "output_layer.weight"
_ACTIVATIONS = {"relu": "relu", "swish1": "silu", "gelu": "gelu"}
_PLAIN: dict[str, Any] = {
    "decoder_type": ("transformer", None),
    "use_lhuc": (False, None),
    "use_glu": (False, None),
    "act_type": (*_ACTIVATIONS,),
    "positional_embedding_type": ("fixed", "learned"),
}
# Host's sublayer -> (module, process blocks), per side.
_BLOCKS = {
    "encoder": {"self_attn": ("self_attention", "self_attention")},
    "decoder": {
        "self_attn": ("autoregr_layer", "autoregr_layer"),
        "encoder_attn": ("enc_attention", "enc_attention"),
    },
}


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a tagged mapping is a mapping."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return loader.construct_scalar(node)


_Loader.add_multi_constructor("!", _tagged)


def open_sockeye(path: str | Path, location: str | None = None) -> Source:
    """The tensors of a parameter file, or of a model directory's `params.best`.

    Raises:
        SourceError: the file is no torch state dict.
    """
    file = _params(Path(path))
    return StateSource(file, load(file), "sockeye", location)


def _params(path: Path) -> Path:
    return path / "params.best" if path.is_dir() else path


def describe_sockeye(path: str | Path) -> Foreign:
    """The host, rules and vocabularies of a model directory.

    Raises:
        SourceError: no Transformer of Sockeye 3, or an option without a counterpart in the host.
    """
    file = _params(Path(path))
    source = open_sockeye(file)
    options = _read(file.parent / "config")
    stacks = {side: fields(options.get(f"config_{side}")) for side in ("encoder", "decoder")}
    for stack in stacks.values():
        refuse(file, stack, _PLAIN)
    refuse(file, options, {"dtype": ("float32", "float16", "bfloat16", None)})
    names = source.tensors()
    odd = [n for n in names if "factor" in n or n.startswith("nvs") or "lhuc" in n]
    if odd:
        raise SourceError(f"{file}: not supported: {', '.join(odd[:5])}")
    config = _config(file, source, options, stacks)
    rules: dict[str, Any] = {}
    for side, stack in stacks.items():
        rules |= _side(source, side, config, int(stack["attention_heads"]))
    copies, notes = _embeddings(source, config, options, rules)
    ignore = repeated(copies)
    if any(name.startswith("length_ratio.") for name in names):
        ignore["length_ratio.{p*}"] = "predicts lengths for Sockeye's own beam search"
    tokens = []
    for side, letters in (("encoder", "src"), ("decoder", "trg")):
        vocabulary = file.parent / f"vocab.{letters}.0.json"
        known = _vocabulary(vocabulary)
        tokens.append(check_vocabulary(vocabulary, known, width(source, _TABLES[side], file)[0]))
        if known is None:
            notes.append(f"no {vocabulary.name} beside the parameters")
    return Foreign(
        toolkit="sockeye",
        config=config,
        rules=rules,
        ignore=ignore,
        source_vocabulary=tokens[0],
        target_vocabulary=tokens[1],
        copies=copies,
        arguments=options,
        notes=tuple(notes),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; it holds the model's options") from None
    except (OSError, yaml.YAMLError) as error:
        raise SourceError(f"{path}: no config of Sockeye: {error}") from None
    if not isinstance(content, dict) or "config_encoder" not in content:
        raise SourceError(f"{path}: no config of Sockeye: no config_encoder")
    return content


def _vocabulary(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        return sorted(ids, key=ids.__getitem__)
    except (ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: no vocabulary of Sockeye: {error}") from None


def _norm(file: Path, stack: dict[str, Any]) -> bool:
    """Whether norms come before the sublayers."""
    before, after = str(stack["preprocess_sequence"]), str(stack["postprocess_sequence"])
    if ("n" in before) == ("n" in after) or after.rstrip("n") not in ("dr", "r"):
        raise SourceError(
            f"{file}: not supported: preprocess_sequence {before!r} with postprocess_sequence "
            f"{after!r}; known: n before and dr after, or drn after"
        )
    return "n" in before


def _config(
    file: Path, source: Source, options: dict[str, Any], stacks: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    rows, dim = width(source, _TABLES["encoder"], file)
    target_rows, _ = width(source, _TABLES["decoder"], file)
    tying = str(options.get("weight_tying_type") or "none")
    tied = "softmax" in tying
    lengths = [width(source, f"{side}.pos_embedding.weight", file)[0] for side in stacks]
    encoder = stacks["encoder"]
    made: dict[str, Any] = {
        **{"vocab_size": rows, "decoder_vocab_size": target_rows, "d_model": dim},
        **{"share_encoder_decoder_embeddings": tying == "src_trg_softmax"},
        **{"tie_word_embeddings": tied},
        **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
        **{"decoder_start_token_id": 2, "forced_eos_token_id": None},
        "max_position_embeddings": lengths[0],
        "max_target_positions": None if lengths[0] == lengths[1] else lengths[1],
        "position_layout": "halves",
        "attention_bias": False,
        "layer_norm_eps": 1e-6,
        "activation_function": _ACTIVATIONS[str(encoder["act_type"])],
        "dropout": float(encoder.get("dropout_prepost") or 0.0),
        "attention_dropout": float(encoder.get("dropout_attention") or 0.0),
        "activation_dropout": float(encoder.get("dropout_act") or 0.0),
    }
    for side, stack in stacks.items():
        before = _norm(file, stack)
        made |= {
            f"{side}_layers": int(stack["num_layers"]),
            f"{side}_attention_heads": int(stack["attention_heads"]),
            f"{side}_ffn_dim": int(stack["feed_forward_num_hidden"]),
            f"{side}_normalize_before": before,
            f"{side}_final_norm": before,
            f"{side}_learned_positions": stack["positional_embedding_type"] == "learned",
        }
    return made


def _side(source: Source, side: str, config: dict[str, Any], heads: int) -> dict[str, Any]:
    here, there = f"model.{side}.layers.{{i}}", f"{side}.layers.{{i}}"
    dim = int(config["d_model"])
    when = "pre" if config[f"{side}_normalize_before"] else "post"
    rules: dict[str, Any] = {
        f"model.{side}.embed_positions.weight": f"{side}.pos_embedding.weight",
        f"{here}.fc1.{{p}}": f"{there}.ff.ff1.{{p}}",
        f"{here}.fc2.{{p}}": f"{there}.ff.ff2.{{p}}",
        f"{here}.final_layer_norm.{{p}}": f"{there}.{when}_ff.layer_norm.{{p}}",
    }
    if config[f"{side}_final_norm"]:
        rules[f"model.{side}.layer_norm.{{p}}"] = f"{side}.final_process.layer_norm.{{p}}"
    for attention, (module, block) in _BLOCKS[side].items():
        target, origin = f"{here}.{attention}", f"{there}.{module}"
        rules[f"{target}_layer_norm.{{p}}"] = f"{there}.{when}_{block}.layer_norm.{{p}}"
        rules[f"{target}.out_proj.weight"] = f"{origin}.ff_out.weight"
        packed = attention == "self_attn"
        query: Any = f"{origin}.ff_q.weight"
        if packed:
            first = {"split": {"parts": 3, "index": 0, "dim": 0}}
            query = {"from": f"{origin}.ff_in.weight", "ops": [first]}
        rules[f"{target}.q_proj.weight"] = query
        for index, letter in enumerate("kv"):
            rules[f"{target}.{letter}_proj.weight"] = {
                "from": f"{origin}.{'ff_in' if packed else 'ff_kv'}.weight",
                "ops": [*([_rest(dim)] if packed else []), *_of_heads(index, heads, dim)],
            }
    return rules


def _rest(dim: int) -> dict[str, Any]:
    """What follows the queries in a packed projection."""
    return {"slice": {"start": dim, "stop": 3 * dim, "dim": 0}}


def _of_heads(index: int, heads: int, dim: int) -> list[dict[str, Any]]:
    """Keys (0) or values (1) out of rows that alternate head by head."""
    return [
        {"reshape": {"shape": [heads, 2, dim // heads, dim]}},
        {"split": {"parts": 2, "index": index, "dim": 1}},
        {"reshape": {"shape": [dim, dim]}},
    ]


def _embeddings(
    source: Source, config: dict[str, Any], options: dict[str, Any], rules: dict[str, Any]
) -> tuple[dict[str, str], list[str]]:
    grown = {"reshape": {"shape": [1, config["decoder_vocab_size"]]}}
    rules["final_logits_bias"] = {"from": "output_layer.bias", "ops": [grown]}
    tables = _TABLES["encoder"], _TABLES["decoder"]
    copies = embedding_rules(source, config, rules, tables, [_OUTPUT])
    return copies, [UNSHARED] if options.get("weight_tying_type") == "src_trg" else []
