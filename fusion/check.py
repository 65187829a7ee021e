"""One batch forward and backward through a composed model: does it do what its ledger promises?"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fusion.errors import LedgerError
from fusion.glue.base import Glue
from fusion.model import FusedModel
from fusion.policies import part_of
from fusion.warmstart import verify_total

DRAWS = 16  # training passes in which drop-net and LayerDrop are waited for to use every branch
SHOWN = 3  # tensors in a line about several


@dataclass
class Findings:
    """What a check found: `problems` must be empty; `held` says what holds, or is worth knowing."""

    held: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_model(model: FusedModel, batch: dict[str, Tensor]) -> Findings:
    """Check ledger, neutral start, gradients, frozen parts and finite values on one batch.

    The model's values, mode, gradients and random state are left as they were.

    Args:
        batch: from `FusionProcessor`, with labels
    """
    findings = Findings()
    mode, clock = model.training, (model.clock.update, model.clock.forward)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            _ledger(model, findings)
            _neutral(model, batch, findings)
            _gradients(model, batch, findings)
        finally:
            model.zero_grad(set_to_none=True)
            model.clock.update, model.clock.forward = clock
            model.train(mode)
    return findings


def _ledger(model: FusedModel, findings: Findings) -> None:
    try:
        verify_total(model, model.ledger)
    except LedgerError as error:
        findings.problems += str(error).split("\n")
        return
    findings.held.append(f"ledger: all {len(model.ledger)} tensors accounted for, ties intact")


def _neutral(model: FusedModel, batch: dict[str, Tensor], findings: Findings) -> None:
    model.eval()
    with torch.no_grad():
        fused = model(**batch).logits
        with model.without_glue():
            host = model(**batch).logits
    if not bool(torch.isfinite(fused).all()):
        findings.problems.append("logits: not finite")
    if not model.glue_modules:
        return
    if torch.equal(fused, host):
        findings.held.append("neutral start: logits are the host's, bit for bit")
    elif model.is_neutral:
        worst = float((fused - host).abs().max())
        findings.problems.append(f"neutral start: logits differ from the host's by {worst:.3g}")
    else:
        findings.held.append("start is not neutral, as this glue is published")


def _gradients(model: FusedModel, batch: dict[str, Tensor], findings: Findings) -> None:
    model.train()
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not wanted:
        findings.problems.append("nothing is trainable")
        return
    wholes = _wholes(model, wanted)
    reached: set[str] = set()
    for _ in range(DRAWS):
        loss = model(**batch).loss
        if loss.requires_grad:  # else all that is trained was dropped
            loss.backward()
        reached = {name for name, parameter in wanted.items() if parameter.grad is not None}
        if not any(reached.isdisjoint(pieces) for pieces in wholes.values()):
            break
    still = 0
    for name in sorted(reached):
        gradient = wanted[name].grad
        if not bool(torch.isfinite(gradient).all()):
            findings.problems.append(f"{name}: its gradient is not finite")
        elif not bool(gradient.any()):
            if _is_behind(name, model):
                still += 1  # behind a gate at zero: moves once the gate has moved
            else:
                reached.remove(name)
    findings.problems += [
        _dead(whole, pieces) for whole, pieces in wholes.items() if reached.isdisjoint(pieces)
    ]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    findings.problems += [
        f"{name}: frozen, but got a gradient"
        for name in frozen
        if model.get_parameter(name).grad is not None
    ]
    if not findings.problems:
        behind = f" ({still} of them zero behind a gate at zero)" if still else ""
        share = "all" if len(reached) == len(wanted) else f"{len(reached)} of"
        findings.held.append(
            f"gradients: {share} {len(wanted)} trainable parameters got one{behind}"
        )
        findings.held += _unreached([name for name in wanted if name not in reached])
        findings.held.append(f"frozen: none of {len(frozen)} parameters got a gradient")


def _wholes(model: FusedModel, wanted: dict[str, nn.Parameter]) -> dict[str, list[str]]:
    """What is not connected if none of its trainable tensors gets a gradient.

    Of what fusion places itself that is every tensor. A pretrained part may have some that a batch
    does not reach, or none does: experts, a layer that LayerDrop leaves out, attention to global
    tokens, a pooler. There it is the host's encoder, its decoder, what both have, and every encoder
    that is plugged in; and likewise all of a glue whose places are modules by name, which may be
    experts.
    """
    stacks = _stacks(model)
    wholes: dict[str, list[str]] = {}
    for name, parameter in wanted.items():
        owner = _owner(name, model)
        if name.startswith("host."):
            whole = stacks.get(id(parameter), "host")
        elif name.startswith("encoders.") or (owner is not None and ":" in owner.place.site):
            whole = part_of(name)
        else:
            whole = name
        wholes.setdefault(whole, []).append(name)
    return wholes


def _stacks(model: FusedModel) -> dict[int, str]:
    """The host's encoder or decoder, by name, of every parameter that one of the two has."""
    if model.family.causal:
        return {}
    names = {id(module): f"host.{name}" for name, module in model.host.named_modules()}
    encoder, decoder = model.host.get_encoder(), model.host.get_decoder()
    found: dict[int, str] = {}
    for mine, other in ((encoder, decoder), (decoder, encoder)):
        shared = {id(parameter) for parameter in other.parameters()}
        own = [id(parameter) for parameter in mine.parameters()]
        found |= {one: names[id(mine)] for one in own if one not in shared}
    return found


def _dead(whole: str, pieces: list[str]) -> str:
    if pieces == [whole]:
        return f"{whole}: trainable, but gets no gradient; train.policies can freeze it"
    return (
        f"{whole}: trainable, but none of it gets a gradient; train.policies can freeze "
        f"{_some(pieces)}"
    )


def _unreached(names: list[str]) -> list[str]:
    """One line a part about tensors without a gradient where others of it have one."""
    by_part: dict[str, list[str]] = {}
    for name in names:
        by_part.setdefault(part_of(name), []).append(name)
    return [
        f"{part}: this batch gives no gradient to {_some(found)}: others may, or none does; "
        "train.policies can freeze what is never used"
        for part, found in by_part.items()
    ]


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _is_behind(name: str, model: FusedModel) -> bool:
    """Whether a tensor is read only through glue that starts by adding nothing."""
    if name.startswith("host."):
        return False
    owner = _owner(name, model)
    owners = model.glue_modules.values() if owner is None else [owner]
    return any(module.neutral for module in owners)


def _owner(name: str, model: FusedModel) -> Glue | None:
    """The glue module that a tensor belongs to."""
    modules = model.glue_modules.items()
    return next((m for prefix, m in modules if name.startswith(f"{prefix}.")), None)
