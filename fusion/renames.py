"""How transformers' own loader names and cuts the tensors of older or packed checkpoints, as rules.

transformers keeps, per model type, what a class's tensors are called in the files on the hub
(`encoder.layers.0.attn.Wqkv` for three of NomicBERT's). Where a file has such names, they become
rules like a recipe's own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)


def hub_rules(
    model: PreTrainedModel, keys: Collection[str], taken: Collection[str]
) -> dict[str, Any]:
    """Target name -> rule, for the tensors of a model that the file has under another name.

    Args:
        keys: the file's names
        taken: targets that have a source already

    Of the conversions that are more than a name, packed projections are known: the others keep
    being reported as missing.
    """
    wanted = model.state_dict()
    missing = {name for name in wanted if name not in keys and name not in taken}
    if not missing or all(key in wanted for key in keys):  # the mapping takes 0.1 s to build
        return {}
    every = get_model_conversion_mapping(model)
    renames = [one for one in every if isinstance(one, WeightRenaming)]
    cuts = [one for one in every if isinstance(one, WeightConverter) and _is_cut(one)]
    by_pattern = {one.source_patterns[0]: one for one in cuts}
    found: dict[str, Any] = {}
    for key in keys:
        name, cut = rename_source_key(key, renames, cuts, model.base_model_prefix, wanted)
        if cut is None:
            found[name] = key
            continue
        targets, chunk = by_pattern[cut].target_patterns, by_pattern[cut].operations[0]
        for index, target in enumerate(targets):
            split = {"parts": len(targets), "index": index, "dim": chunk.dim}
            rule = {"from": key, "ops": [{"split": split}]}
            found[name.replace(targets[0], target)] = rule
    return {name: rule for name, rule in found.items() if name in missing}


def _is_cut(converter: WeightConverter) -> bool:
    """Whether one tensor becomes several equal ones and nothing else happens."""
    operations = converter.operations
    return (
        len(converter.source_patterns) == 1
        and len(operations) == 1
        and isinstance(operations[0], Chunk)
    )
