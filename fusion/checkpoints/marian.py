"""Marian's own models: `.npz` files of `type: transformer`, with their options inside.

Layout (github.com/marian-nmt/marian-dev, src/models/transformer.h, src/layers/generic.h): matrices
are `[in, out]`, biases `[1, out]`, layers count from 1; `special:model.yml` is a YAML text as
bytes. The decoder starts with a zero embedding at position 0, which becomes the row of a padding
token that is added to the vocabulary (as transformers' own conversion does). Epsilon is 1e-6, and
positions are tensor2tensor's: transformers' `MarianMTModel` has 1e-5 and other positions, so that a
converted model's logits differ there; here they do not.

Checked: logits against a plain reference, from files written by this layout (post-norm, pre-norm,
tied and untied, trained positions). No file of Marian was at hand. `decoder_ff_logit_out_Wt` and
`_top_ln_scale` are written from memory of the code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from fusion.checkpoints.foreign import Foreign, check_vocabulary, refuse, width
from fusion.checkpoints.npz import open_npz
from fusion.checkpoints.source import Source, TensorInfo
from fusion.errors import SourceError

_OPTIONS = "special:model.yml"
_NEVER = -1e9  # the added padding token is never an output
_PLAIN: dict[str, Any] = {
    "type": ("transformer",),
    "transformer-decoder-autoreg": ("self-attention",),
    "transformer-ffn-depth": (2,),
    "transformer-no-projection": (False,),
    "transformer-ffn-activation": ("relu", "swish", "gelu"),
    "transformer-tied-layers": ([], None),
    "transformer-decoder-dim-ffn": (0, None),
    "lemma-dim-emb": (0, None),
    "ulr": (False, None),
    "input-types": ([], ["sequence", "sequence"], ["sequence"]),
}
_ATTENTION = {"self_attn": "self", "encoder_attn": "context"}


def open_marian(path: str | Path, location: str | None = None) -> Source:
    """The arrays of an .npz model, its options among them.

    Raises:
        SourceError: when it is read, that it is no .npz of numbers.
    """
    return open_npz(Path(path), location)


def describe_marian(
    path: str | Path, source_vocabulary: str | Path | None = None,
    target_vocabulary: str | Path | None = None,
) -> Foreign:  # fmt: skip
    """The host, rules and vocabularies of an .npz model.

    Args:
        source_vocabulary, target_vocabulary: Marian's `.yml` files (token: id)

    Raises:
        SourceError: no Marian Transformer, or an option that the host has no counterpart of.
    """
    path = Path(path)
    source = open_marian(path)
    names = source.tensors()
    options = _options(path, source)
    refuse(path, options, _PLAIN)
    config = _config(path, source, options)
    rules = _embeddings(names, config)
    for side, depth in (("encoder", "encoder_layers"), ("decoder", "decoder_layers")):
        rules |= _layers(names, side, config[depth], config[f"{side}_normalize_before"])
    computed: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        target = f"model.{side}.embed_positions.weight"
        if config["encoder_learned_positions"]:
            rules[target] = "Wpos"
        else:
            computed[target] = "sinusoidal, as in tensor2tensor"
    tokens = [
        _vocabulary(source, path, side, file, config["pad_token_id"])
        for side, file in (("encoder", source_vocabulary), ("decoder", target_vocabulary))
    ]
    return Foreign(
        toolkit="marian",
        config=config,
        rules=rules,
        ignore={_OPTIONS: "the model's options"},
        computed=computed,
        source_vocabulary=tokens[0],
        target_vocabulary=tokens[1],
        arguments=options,
        notes=("a padding token is added after the last one; it is also the decoder's start",),
    )


def _vocabulary(
    source: Source, path: Path, side: str, file: str | Path | None, pad: int
) -> list[str] | None:
    """Tokens of a side, with names for the rows that are added."""
    table = "Wemb" if "Wemb" in source.tensors() else f"{side}_Wemb"
    rows = width(source, table, path)[0]
    tokens = check_vocabulary(Path(file or path), read_vocabulary(file), rows)
    return tokens and [*tokens, *(f"<unused{i}>" for i in range(pad - rows)), "<pad>"]


def read_vocabulary(path: str | Path | None) -> list[str] | None:
    """Tokens by id of a `.yml` vocabulary.

    Raises:
        SourceError: no mapping of tokens to the numbers from 0 on.
    """
    if path is None:
        return None
    try:
        ids = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        tokens = sorted(ids, key=ids.__getitem__)
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("ids are not 0, 1, 2, ...")
    except (OSError, yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path}: no vocabulary of Marian: {error}") from None
    return [str(token) for token in tokens]


def _options(path: Path, source: Source) -> dict[str, Any]:
    if _OPTIONS not in source.tensors():
        raise SourceError(f"{path}: no model of Marian: no {_OPTIONS}")
    text = bytes(source.read(_OPTIONS).view(torch.uint8).tolist()).rstrip(b"\0")
    try:
        options = yaml.safe_load(text.decode("utf-8", errors="replace"))
    except yaml.YAMLError as error:
        raise SourceError(f"{path}: {_OPTIONS}: {error}") from None
    if not isinstance(options, dict):
        raise SourceError(f"{path}: {_OPTIONS}: holds no options")
    return options


def _norms(path: Path, options: dict[str, Any]) -> bool:
    """Whether norms come before the sublayers."""
    before = str(options.get("transformer-preprocess") or "")
    after = str(options.get("transformer-postprocess") or "")
    if set(before) <= set("dn") and "n" in before and after in ("da", "a"):
        return True
    if set(before) <= {"d"} and after in ("dan", "an"):
        return False
    raise SourceError(
        f"{path}: not supported: transformer-preprocess {before!r} with transformer-postprocess "
        f"{after!r}; known: dan after, or n before and da after"
    )


def _config(path: Path, source: Source, options: dict[str, Any]) -> dict[str, Any]:
    names = source.tensors()
    shared = "Wemb" in names
    tables = ("Wemb", "Wemb") if shared else ("encoder_Wemb", "decoder_Wemb")
    (rows, dim), (target_rows, _) = (width(source, table, path) for table in tables)
    pad = max(rows, target_rows)  # one id for both sides; the shorter table gets empty rows
    untied = {"decoder_ff_logit_out_W", "decoder_ff_logit_out_Wt"} & set(names)
    before = _norms(path, options)
    heads, inner = int(options["transformer-heads"]), int(options["transformer-dim-ffn"])
    learned = bool(options.get("transformer-train-positions"))
    activation = str(options.get("transformer-ffn-activation") or "swish")
    return {
        **{"vocab_size": pad + 1, "decoder_vocab_size": pad + 1, "d_model": dim},
        **{"share_encoder_decoder_embeddings": shared and not untied},
        **{"tie_word_embeddings": not untied},
        **{"pad_token_id": pad, "eos_token_id": 0, "bos_token_id": None},
        **{"decoder_start_token_id": pad, "forced_eos_token_id": None},
        **{"encoder_layers": int(options["enc-depth"])},
        **{"decoder_layers": int(options["dec-depth"])},
        **{"encoder_attention_heads": heads, "decoder_attention_heads": heads},
        **{"encoder_ffn_dim": inner, "decoder_ffn_dim": inner},
        **{f"{side}_normalize_before": before for side in ("encoder", "decoder")},
        **{f"{s}_final_norm": _norm_of(names, f"{s}_top") is not None
           for s in ("encoder", "decoder")},
        **{f"{side}_learned_positions": learned for side in ("encoder", "decoder")},
        "normalize_embeddings": _norm_of(names, "encoder_emb") is not None,
        "max_position_embeddings": names["Wpos"].shape[0] if learned else 1024,
        "scale_embedding": not learned,
        "activation_function": "silu" if activation == "swish" else activation,
        "layer_norm_eps": 1e-6,
        "dropout": float(options.get("transformer-dropout") or 0.0),
        "attention_dropout": float(options.get("transformer-dropout-attention") or 0.0),
        "activation_dropout": float(options.get("transformer-dropout-ffn") or 0.0),
    }  # fmt: skip


def _norm_of(names: Collection[str], prefix: str) -> str | None:
    """The suffix of a norm that the file may have."""
    return next((s for s in ("", "_pre") if f"{prefix}_ln_scale{s}" in names), None)


def _embeddings(names: Mapping[str, TensorInfo], config: dict[str, Any]) -> dict[str, Any]:
    def padded(name: str, rows: int) -> dict[str, Any]:
        return {"from": name, "ops": [{"pad": {"size": rows, "dim": 0}}]}

    source_rows, rows = config["vocab_size"], config["decoder_vocab_size"]
    shared = "Wemb" in names
    rules: dict[str, Any] = {}
    if config["share_encoder_decoder_embeddings"]:
        rules["model.shared.weight"] = padded("Wemb", rows)
    else:
        table = "Wemb" if shared else "{}_Wemb"
        encoder, decoder = table.format("encoder"), table.format("decoder")
        rules["model.encoder.embed_tokens.weight"] = padded(encoder, source_rows)
        rules["model.decoder.embed_tokens.weight"] = padded(decoder, rows)
    if "decoder_ff_logit_out_Wt" in names:
        rules["lm_head.weight"] = padded("decoder_ff_logit_out_Wt", rows)
    elif "decoder_ff_logit_out_W" in names:
        rules["lm_head.weight"] = padded("decoder_ff_logit_out_W", rows)
        rules["lm_head.weight"]["ops"].insert(0, "transpose")
    grow = {"pad": {"size": rows, "dim": 1, "value": _NEVER}}
    rules["final_logits_bias"] = {"from": "decoder_ff_logit_out_b", "ops": [grow]}
    for side in ("encoder", "decoder"):
        for norm, prefix in (("layernorm_embedding", "emb"), ("layer_norm", "top")):
            suffix = _norm_of(names, f"{side}_{prefix}")
            if suffix is not None:
                rules |= _norm(f"model.{side}.{norm}", f"{side}_{prefix}", suffix, config, {})
    return rules


def _norm(
    target: str, prefix: str, suffix: str, config: dict[str, Any] | int, where: dict[str, Any]
) -> dict[str, Any]:
    dim = config if isinstance(config, int) else int(config["d_model"])
    flat = {"reshape": {"shape": [dim]}}
    return {
        f"{target}.{here}": {"from": f"{prefix}_ln_{there}{suffix}", "ops": [flat], **where}
        for here, there in (("weight", "scale"), ("bias", "bias"))
    }


def _layers(names: Mapping[str, TensorInfo], side: str, depth: int, before: bool) -> dict[str, Any]:
    where = {"where": {"i": [str(i + 1) for i in range(depth)]}}
    suffix = "_pre" if before else ""
    here, there = f"model.{side}.layers.{{i}}", f"{side}_l{{i}}"
    dim, inner = (names[f"{side}_l1_ffn_W1"].shape) if depth else (0, 0)

    def linear(target: str, weight: str, bias: str, rows: int) -> dict[str, Any]:
        flat = {"reshape": {"shape": [rows]}}
        return {
            f"{target}.weight": {"from": weight, "ops": ["transpose"], **where},
            f"{target}.bias": {"from": bias, "ops": [flat], **where},
        }

    rules: dict[str, Any] = {}
    for attention in list(_ATTENTION)[: 1 if side == "encoder" else 2]:
        prefix = f"{there}_{_ATTENTION[attention]}"
        for letter in "qkvo":
            target = f"{here}.{attention}.{'out' if letter == 'o' else letter}_proj"
            rules |= linear(target, f"{prefix}_W{letter}", f"{prefix}_b{letter}", dim)
        rules |= _norm(f"{here}.{attention}_layer_norm", f"{prefix}_Wo", suffix, dim, where)
    for index, rows in ((1, inner), (2, dim)):
        ffn = f"{there}_ffn"
        rules |= linear(f"{here}.fc{index}", f"{ffn}_W{index}", f"{ffn}_b{index}", rows)
    return rules | _norm(f"{here}.final_layer_norm", f"{there}_ffn_ffn", suffix, dim, where)
