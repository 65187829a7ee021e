"""Checkpoints of the BERT-fused model's own code (bert-nmt, Zhu et al. 2020), into one model.

Layout (github.com/bert-nmt/bert-nmt, fairseq/models/transformer.py, `transformers2`): fairseq's of
0.6 to 0.8, and `encoder.layers.{i}.bert_attn.*`, `decoder.layers.{i}.bert_attn.*` (packed where
BERT is as wide as the host, else `q_proj_weight`, `k_proj_weight`, `v_proj_weight` with a packed
bias; split in ports to later fairseq), `bert_encoder.*` (names of transformers' BertModel).

At evaluation a layer mixes its own attention and BERT's with 1/2 and 1/2 if the drop-net was on
(`encoder_bert_dropout`), else with `encoder_ratio` and `bert_ratio`, 1 by default; a layer whose
`bert_gates` is 0 leaves BERT out. The code's drop-net rate is half of the paper's.

Checked: logits against a plain reference, from files written by this layout: BERT as wide as the
host and not, packed and split, with gates and ratios. No file of the original code was at hand.

In a recipe, host, encoder and glue each name the same file; `shares` says which tensors are whose.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion.checkpoints import fairseq
from fusion.checkpoints.foreign import Foreign, StateSource, layers, load, part
from fusion.checkpoints.source import Selection, Source
from fusion.errors import SourceError

_SITES = {"encoder": "self_attention", "decoder": "cross_attention"}
_BERT = "bert_encoder."
HOST, GLUE, ENCODER = "host.", "bert_fused", "bert"  # as a model names them by default


def open_bert_nmt(path: str | Path, location: str | None = None) -> Source:
    """The tensors under `model`.

    Raises:
        SourceError: the file is no fairseq checkpoint.
    """
    path = Path(path)
    return StateSource(path, part(load(path), "model", path, "bert-nmt"), "fairseq", location)


def describe_bert_nmt(
    path: str | Path,
    dictionaries: str | Path | None = None,
    *,
    bert_heads: int | None = None,
) -> Foreign:
    """The fused model of a checkpoint; targets are named as a `FusedModel` names its tensors.

    Args:
        dictionaries: as in `describe_fairseq`
        bert_heads: BERT's attention heads, which the file does not tell; width / 64 by default

    Raises:
        SourceError: no fused checkpoint, or a variant that the glue does not compute.
    """
    path = Path(path)
    state = load(path)
    source = StateSource(path, part(state, "model", path, "bert-nmt"), "fairseq")
    options = fairseq.read_options(state, path)
    names = set(source.tensors())
    _refuse(path, names, options)
    where = Path(dictionaries) if dictionaries is not None else path.parent
    host = fairseq.describe(source, path, options, where)
    rules = {f"{HOST}{target}": rule for target, rule in host.rules.items()}
    ignore = dict(host.ignore)
    placed = []
    for side in _SITES:
        here = _glued(names, side, options)
        fused = any(name.startswith(f"{side}.layers.0.bert_attn.") for name in names)
        if fused:
            _left_out(names, side, here, ignore)
        if here:
            rules |= _side(names, side)
            chosen = ",".join(map(str, here))
            placed.append(f"{side}.{{{chosen}}}.{_SITES[side]}")
    if not placed:
        raise SourceError(f"{path}: BERT has no part in it: all its gates, or its ratio, are 0")
    bert = _bert(source, names, bert_heads)
    if bert is not None:
        rules[f"encoders.{ENCODER}.model.{{rest*}}"] = f"{_BERT}{{rest*}}"
        ignore |= _unread(names)
    computed = {f"{HOST}{target}": how for target, how in host.computed.items()}
    for buffer in ("position_ids", "token_type_ids"):
        computed[f"encoders.{ENCODER}.model.embeddings.{buffer}"] = "a constant of the class"
    return Foreign(
        toolkit="bert-nmt",
        config=host.config,
        rules=rules,
        ignore=ignore,
        computed=computed,
        source_vocabulary=host.source_vocabulary,
        target_vocabulary=host.target_vocabulary,
        copies=host.copies,
        arguments=options,
        notes=(*host.notes, *_notes(options, bert is not None, bert_heads)),
        encoder=bert,
        glue=[
            {
                **{"name": GLUE, "method": "bert-fused", "encoder": ENCODER, "sites": placed},
                "options": _options(options),
            }
        ],
    )


def piece(fused: Foreign, prefix: str) -> Foreign:
    """What a fused file says of one part of the model; its rules are the part's own.

    Args:
        prefix: of the part's tensors, `host.`, `glue.NAME.` or `encoders.NAME.model.`
    """
    kind = _kind(prefix)

    def below(patterns: Mapping[str, Any]) -> dict[str, Any]:
        head = {"glue": f"glue.{GLUE}.", "encoders": f"encoders.{ENCODER}.model."}.get(kind, HOST)
        return {n.removeprefix(head): v for n, v in patterns.items() if n.startswith(head)}

    return replace(
        fused,
        rules=below(fused.rules),
        computed=below(fused.computed),
        ignore={name: why for name, why in fused.ignore.items() if _owner(name) == kind},
    )


def shares(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Which tensors of a fused file are whose; those that no part asks for are the first one's.

    So what nothing loads is an error, and what another part loads is not.

    Args:
        sources: prefix of a part -> its source; parts of one file have one source
    """
    shared: dict[str, Source] = {}
    for prefix, source in sources.items():
        readers = [other for other, its in sources.items() if its is source]
        mine = {_kind(prefix)}
        if prefix == readers[0]:
            mine |= {"host", "glue", "encoders"} - set(map(_kind, readers))
        shared[prefix] = Selection(source, {n for n in source.tensors() if _owner(n) in mine})
    return shared


def _kind(prefix: str) -> str:
    return prefix.partition(".")[0]


def _owner(name: str) -> str:
    """The kind of part that a tensor of the file belongs to."""
    if ".bert_attn." in name:
        return "glue"
    return "encoders" if name.startswith(_BERT) else "host"


def _refuse(path: Path, names: Collection[str], options: dict[str, Any]) -> None:
    if not any(".bert_attn." in name for name in names):
        raise SourceError(f"{path}: no bert_attn: no fused checkpoint; read it as fairseq's")
    odd = [
        kind
        for kind in ("bert_attn_layer_norm", "fc_d")
        if any(f".{kind}." in name for name in names)
    ]
    if options.get("mask_cls_sep"):
        odd.append("mask_cls_sep: True")
    if odd:
        raise SourceError(f"{path}: not supported: {', '.join(odd)}")


def _ratios(options: dict[str, Any]) -> tuple[float, float]:
    """What (own attention, BERT's) are multiplied with at evaluation."""
    if options.get("encoder_bert_dropout"):
        return 0.5, 0.5
    own, bert = options.get("encoder_ratio"), options.get("bert_ratio")
    return 1.0 if own is None else float(own), 1.0 if bert is None else float(bert)


def _options(options: dict[str, Any]) -> dict[str, Any]:
    rate = 0.0
    if options.get("encoder_bert_dropout"):
        told = options.get("encoder_bert_dropout_ratio")
        rate = 0.25 if told is None else float(told)
    return {"start": "paper", "drop_net": 2 * rate, "weights": list(_ratios(options))}


def _glued(names: Collection[str], side: str, options: dict[str, Any]) -> list[int]:
    """Layers of a side in which BERT's attention has a part."""
    found = [
        i
        for i in range(layers(names, f"{side}.layers."))
        if any(name.startswith(f"{side}.layers.{i}.bert_attn.") for name in names)
    ]
    gates = options.get("bert_gates") or [1] * len(found)
    open_ = _ratios(options)[1] != 0
    return [i for i in found if open_ and (i >= len(gates) or gates[i] == 1)]


def _side(names: Collection[str], side: str) -> dict[str, Any]:
    """Rules of one side's glue."""
    target = f"glue.{GLUE}.{side}_{{i}}_{_SITES[side]}.attention"
    attention = f"{side}.layers.0.bert_attn"
    layout = "split" if f"{attention}.q_proj.weight" in names else "apart"
    layout = "packed" if f"{attention}.in_proj_weight" in names else layout
    return fairseq.attention_rules(target, f"{side}.layers.{{i}}.bert_attn", layout)


def _left_out(names: Collection[str], side: str, glued: list[int], ignore: dict[str, str]) -> None:
    for i in range(layers(names, f"{side}.layers.")):
        if i not in glued:
            ignore[f"{side}.layers.{i}.bert_attn.{{p*}}"] = "its gate or ratio is 0: never added"


def _unread(names: Collection[str]) -> dict[str, str]:
    """Tensors of BERT that no memory reads: name -> reason."""
    why = {
        f"{_BERT}pooler.": "the memory is token states; the pooler is not built",
        f"{_BERT}embeddings.position_ids": "computed by the constructor since transformers 4.31",
    }
    return {name: why[start] for name in names for start in why if name.startswith(start)}


def _bert(source: Source, names: Collection[str], heads: int | None) -> dict[str, Any] | None:
    """BERT's config, as far as shapes tell it."""
    words = f"{_BERT}embeddings.word_embeddings.weight"
    if words not in names:
        return None
    shapes = {name: info.shape for name, info in source.tensors().items()}
    rows, dim = shapes[words]
    inner = shapes[f"{_BERT}encoder.layer.0.intermediate.dense.weight"][0]
    return {
        **{"vocab_size": rows, "hidden_size": dim, "intermediate_size": inner},
        "num_hidden_layers": layers(names, f"{_BERT}encoder.layer."),
        "num_attention_heads": heads or max(1, dim // 64),
        "max_position_embeddings": shapes[f"{_BERT}embeddings.position_embeddings.weight"][0],
        "type_vocab_size": shapes[f"{_BERT}embeddings.token_type_embeddings.weight"][0],
    }


def _notes(options: dict[str, Any], has_bert: bool, heads: int | None) -> tuple[str, ...]:
    notes = []
    if not has_bert:
        notes.append("no bert_encoder in the file: give the encoder a source of its own")
    elif heads is None:
        notes.append("BERT's number of heads is taken to be its width / 64")
    layer = options.get("bert_output_layer", -1)
    if layer != -1:
        notes.append(f"bert_output_layer {layer}: set the encoder's layer to it")
    if options.get("encoder_bert_mixup"):
        notes.append("encoder_bert_mixup: training drew its weights uniformly; the glue does not")
    return (*notes, "BERT read its text padded on the left there; here on the right, as BERT's own")
