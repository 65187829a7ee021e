"""One batch forward and backward through a composed model: does it do what its ledger promises?"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fusion.errors import LedgerError
from fusion.model import FusedModel
from fusion.warmstart import verify_total

DRAWS = 16  # training passes in which drop-net is waited for to use every branch


@dataclass
class Findings:
    """What a check found: `problems` must be empty; `held` says what was looked at and holds."""

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
    for _ in range(DRAWS if model.may_drop else 1):
        model(**batch).loss.backward()
        if all(parameter.grad is not None for parameter in wanted.values()):
            break
    dead, still = [], 0
    for name, parameter in wanted.items():
        if parameter.grad is None:
            dead.append(name)
        elif not bool(torch.isfinite(parameter.grad).all()):
            findings.problems.append(f"{name}: its gradient is not finite")
        elif not bool(parameter.grad.any()):
            if _is_behind(name, model):
                still += 1  # behind a gate at zero: moves once the gate has moved
            else:
                dead.append(name)
    findings.problems += [
        f"{name}: trainable, but gets no gradient; train.policies can freeze it" for name in dead
    ]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    findings.problems += [
        f"{name}: frozen, but got a gradient"
        for name in frozen
        if model.get_parameter(name).grad is not None
    ]
    if not findings.problems:
        behind = f" ({still} of them zero behind a gate at zero)" if still else ""
        findings.held.append(f"gradients: all {len(wanted)} trainable parameters got one{behind}")
        findings.held.append(f"frozen: none of {len(frozen)} parameters got a gradient")


def _is_behind(name: str, model: FusedModel) -> bool:
    """Whether a tensor is read only through glue that starts by adding nothing."""
    if name.startswith("host."):
        return False
    owners = [m for prefix, m in model.glue_modules.items() if name.startswith(f"{prefix}.")]
    return any(m.neutral for m in owners or model.glue_modules.values())
