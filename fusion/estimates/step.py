"""One training step of a composed model, run on meta."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from fusion.encoders.part import EncoderPart
from fusion.errors import FusionError
from fusion.estimates.meta import Functions, MetaRun
from fusion.estimates.work import Work
from fusion.model import FusedModel

BACKWARD, LOSS = "backward", "loss"
DRAWS = 3  # steps over which glue that is left out at random is averaged


class UncountedError(FusionError):
    """A model asks for values that a run on meta does not have."""


@dataclass(frozen=True)
class Batch:
    """The size of a batch.

    Attributes:
        source, target: tokens of a sentence, padding included
        encoders: likewise, per encoder
    """

    sentences: int
    source: int
    target: int
    encoders: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class How:
    """How a step is computed.

    Attributes:
        half: what autocast computes in; None: fp32
        checkpointing: activations are computed again in the backward pass
        cached: encoders whose memory is read, not computed
        accumulates: gradients of an earlier batch are there already
        gpu: with a GPU's kernels
    """

    half: torch.dtype | None = None
    checkpointing: bool = False
    cached: frozenset[str] = frozenset()
    accumulates: bool = False
    gpu: bool = True


@dataclass
class Step:
    """What one step took.

    Attributes:
        work: operations by part; `loss` and `backward` are parts
        peak: bytes that were alive at most, beside the weights
        at_peak: whose they were
    """

    work: dict[str, Work]
    peak: int
    at_peak: dict[str, int]

    @property
    def total(self) -> Work:
        """All operations."""
        return sum(self.work.values(), Work())


def run_step(model: FusedModel, batch: Batch, how: How, *, mean: bool = True) -> Step:
    """Forward, loss and backward of a model whose parameters are on meta.

    Args:
        mean: of some steps, where glue is left out at random; else the first one

    Raises:
        UncountedError: the model asks for values, as routing to experts does.
    """
    draws = DRAWS if mean and model.may_drop else 1
    with _needing_no_values():
        steps = [_one(model, batch, how, update) for update in range(draws)]
    work: dict[str, Work] = {}
    for step in steps:
        for part, done in step.work.items():
            work[part] = work.get(part, Work()) + done
    worst = max(steps, key=lambda step: step.peak)
    work = {part: done.per(draws) for part, done in work.items()}
    return Step(work, worst.peak, worst.at_peak)


def _one(model: FusedModel, batch: Batch, how: How, update: int) -> Step:
    model.train()
    model.clock.next_update(update)
    trained = [p for p in model.parameters() if p.requires_grad]
    run = MetaRun([*model.parameters(), *model.buffers()])
    functions = Functions(how.half, how.gpu)
    with _checkpointing(model, how, functions), _labelled(model, run), run:
        if how.accumulates:
            run.part = BACKWARD
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        run.part = "host"
        with functions:
            logits = model(**_inputs(model, batch, how), use_cache=False).logits
        run.part = LOSS
        labels = torch.ones(batch.sentences, batch.target, dtype=torch.long)
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), label_smoothing=0.1, reduction="sum"
        )
        loss = model.with_penalties(loss)
        del logits
        run.part = BACKWARD
        if loss.requires_grad:
            with warnings.catch_warnings():  # checkpointing asks for the autocast of a GPU
                warnings.filterwarnings("ignore", message=".*CUDA is not available")
                loss.backward()
    for parameter in trained:
        parameter.grad = None
    model.placement.board.clear()
    return Step(run.work, run.peak, run.at_peak)


def run_encoder(
    part: EncoderPart, sentences: int, tokens: int, half: torch.dtype | None, *, gpu: bool
) -> Work:
    """The forward pass of an encoder alone, as a memory cache is filled.

    Raises:
        UncountedError: the encoder asks for values.
    """
    part.eval()
    run = MetaRun([*part.parameters(), *part.buffers()])
    ids, mask = _ids(sentences, min(tokens, part.limit))
    with _needing_no_values(), torch.no_grad(), run, Functions(half, gpu):
        part(ids, mask)
    return sum(run.work.values(), Work())


@contextlib.contextmanager
def _needing_no_values() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise UncountedError(f"the model asks for values: {why}") from error


def _inputs(model: FusedModel, batch: Batch, how: How) -> dict[str, Tensor]:
    ids, mask = _ids(batch.sentences, batch.source)
    decoder, _ = _ids(batch.sentences, batch.target)
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder}
    for name, part in model.encoder_parts.items():
        ids, mask = _ids(batch.sentences, batch.encoders[name])
        inputs[f"{name}_attention_mask"] = mask
        if name not in how.cached:
            inputs[f"{name}_input_ids"] = ids
            continue
        stack = (part.layers,) if part.stacked else ()
        shape = (*stack, batch.sentences, batch.encoders[name], part.width)
        inputs[f"{name}_memory"] = torch.empty(shape, device="meta")
    return inputs


def _ids(sentences: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Real ids, of which one is padding."""
    ids = torch.ones(sentences, tokens, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return ids, mask


@contextlib.contextmanager
def _checkpointing(model: FusedModel, how: How, functions: Functions) -> Iterator[None]:
    if not how.checkpointing:
        yield
        return
    settings = {
        "use_reentrant": False,
        "preserve_rng_state": False,
        "determinism_check": "none",  # tensors say where they are only while `functions` is on
        "context_fn": lambda: (contextlib.nullcontext(), functions),
    }
    model.activation_checkpointing_enable(settings)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that no cache is kept then goes without saying
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()


@contextlib.contextmanager
def _labelled(model: FusedModel, run: MetaRun) -> Iterator[None]:
    """Tell the run which part computes: encoders as a whole, glue by its own matrices."""
    labels: list[tuple[nn.Module, str]] = [
        (part, f"encoders.{name}") for name, part in model.encoder_parts.items()
    ]
    for glue in model.glue_modules.values():
        labels += [(module, "glue") for module in glue.modules() if _own(module, glue)]
    stack: list[str] = []
    handles = []
    for module, label in labels:
        handles.append(module.register_forward_pre_hook(partial(_enter, run, stack, label)))
        handles.append(module.register_forward_hook(partial(_leave, run, stack), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own(module: nn.Module, glue: nn.Module) -> bool:
    """Whether nothing of the host runs inside a module of glue: all its leaves have parameters."""
    leaves = [m for m in module.modules() if next(m.children(), None) is None]
    return module is not glue and all(next(m.parameters(), None) is not None for m in leaves)


def _enter(run: MetaRun, stack: list[str], label: str, module: nn.Module, args: Any) -> None:
    stack.append(run.part)
    run.part = label


def _leave(run: MetaRun, stack: list[str], module: nn.Module, args: Any, output: Any) -> None:
    run.part = stack.pop()
