"""What every part must satisfy, one function per check, on a bench."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fnmatch import fnmatch

import torch
from torch import Tensor

from fusion.ledger import Origin
from fusion.model import FusedModel
from fusion.processor import FusionProcessor
from fusion.saved import load_model, save_model
from fusion.testing.bench import (
    TARGETS,
    TEXTS,
    Batch,
    Bench,
    EncoderChoice,
    kept,
    logits_of,
    loss_of,
)
from fusion.testing.decoding import beams, generate, reuse, steps
from fusion.testing.encoding import hidden_states, unfrozen
from fusion.testing.report import Failed, Skipped, apart
from fusion.testing.sites import roles, sites, states
from fusion.verify import verify_model
from fusion.warmstart import verify_total

STEPS = 12  # training steps in which every tensor must have had a gradient
NO_GRADIENT = ("*k_proj.bias",)  # one number more for all keys changes no softmax
Check = Callable[[Bench], None]


def ledger(bench: Bench) -> None:
    """Every tensor has an entry, and only glue starts from nothing."""
    composition = bench.start
    verify_total(composition.model, composition.ledger)
    for entry in composition.ledger:
        new = entry.name.startswith(("glue.", "mixes."))
        if (entry.origin is Origin.INITIALISED) > new:
            raise Failed(
                f"{entry.name} of a pretrained part was initialised ({entry.rule})",
                "It must be loaded, tied, or computed by its class",
            )


def neutral(bench: Bench) -> None:
    """Glue that says it is neutral leaves the host bit for bit as it was."""
    model = bench.start.model
    if not model.is_neutral:
        raise Skipped("its `neutral` is False")
    found, alone = logits_of(model, bench.batch), host_logits(bench)
    if not torch.equal(found, alone):
        raise Failed(
            f"`neutral` is True, but logits differ from the host's by {apart(found, alone)}",
            "Let `initial` start a last projection or a gate at zeros, add to `host()` without "
            "rounding it (no product with 1.0 / 3, no cast), or let `neutral` be False",
        )


def remove(bench: Bench) -> None:
    """Taking the glue out gives the host back bit for bit; putting it in again, the glue."""
    model = bench.opened.model
    alone, names = host_logits(bench), list(model.host.state_dict())
    before = logits_of(model, bench.batch)
    host = model.remove_glue()
    try:
        if bench.family.causal:
            found = logits_of(model, bench.batch)
        else:
            found = logits_of(host, model.split_inputs(bench.batch)[1], shifts=model)
    finally:
        model.placement.attach()
    if not torch.equal(found, alone) or list(host.state_dict()) != names:
        raise Failed(
            f"without its glue the host's logits differ by {apart(found, alone)}",
            "Undo in `leave` whatever `enter` does to the host, and change none of its tensors",
        )
    if not torch.equal(logits_of(model, bench.batch), before):
        raise Failed(
            "taken out and put in again, the glue gives other logits", "See `enter` and `leave`"
        )


def effect(bench: Bench) -> None:
    """Glue with random values changes what the model does, and what it reads matters."""
    model = bench.opened.model
    found = _outcome(model, bench.batch)
    with model.without_glue():
        alone = _outcome(model, bench.batch)
    if not bool(torch.isfinite(found).all()):
        raise Failed("with random values in its tensors, logits are not finite", "Normalise")
    if torch.equal(found, alone):
        raise Failed(
            "with random values in all its tensors the model is still the host alone",
            "`forward` returns `host()` untouched: use its parameters",
        )
    readers = [one for one in model.placement.placed if one.encoders]
    if readers and torch.equal(found, _outcome(model, bench.other_batch)):
        raise Failed(
            "other memory gives the same logits",
            "Read `memory.states` in `forward`, or set `reads_memory = False`",
        )


def _outcome(model: FusedModel, batch: Batch) -> Tensor:
    """Logits, and the training loss where glue has a term of its own in it."""
    logits = logits_of(model, batch)
    if not model.has_penalties:
        return logits
    with kept(model), torch.no_grad():
        model.train()
        return torch.cat([logits.flatten(), loss_of(model, batch).flatten()])


def gradients(bench: Bench) -> None:
    """From its start on, training moves every trainable tensor; the host's as in the host alone."""
    model = bench.start.model
    with kept(model), model.without_glue():
        host = {n for n in _moved(model, bench.batch, 1) if n.startswith("host.")}
    with kept(model):
        mine = {n for n, p in model.named_parameters() if p.requires_grad}
        mine = {n for n in mine if n in host or not n.startswith("host.")}
        dead = sorted(mine - _moved(model, bench.batch, STEPS, mine))
    dead = [name for name in dead if not any(fnmatch(name, one) for one in NO_GRADIENT)]
    if dead:
        raise Failed(
            f"no gradient in {STEPS} steps from the start: {', '.join(dead)}",
            "A gate and a projection that both start at zero stay there: start one at zeros, not "
            "both; a tensor that is not used is not a parameter; one that is fixed has "
            "requires_grad_(False)",
        )


def _moved(model: FusedModel, batch: Batch, steps: int, until: set[str] | None = None) -> set[str]:
    """Names of the tensors that get a gradient other than zero in some steps of training."""
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(wanted.values(), lr=0.01)
    moved: set[str] = set()
    model.train()
    for step in range(steps):
        model.clock.next_update(step)
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        if not loss.requires_grad:  # all that is trained was dropped in this step
            continue
        loss.backward()
        moved |= {n for n, p in wanted.items() if p.grad is not None and bool(p.grad.any())}
        for name, parameter in wanted.items():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise Failed(f"{name}: its gradient is not finite", "Mask before the softmax")
        if until is not None and until <= moved:
            break
        optimizer.step()
    return moved


def freeze(bench: Bench) -> None:
    """Frozen parts stay in eval mode, get no gradient, and keep their bytes; glue does not."""
    model = bench.compose(freeze_host=True).model
    frozen = ("host.", *(f"encoders.{name}." for name in model.encoders))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    awake = [n for n, m in model.named_modules() if n.startswith(frozen) and m.training]
    if awake:
        raise Failed(
            f"after train(), {awake[0]} of a frozen part is in training mode",
            "Glue must not be a child of a frozen module: keep it out of the host's modules",
        )
    moved = _moved(model, bench.batch, STEPS)
    state = model.state_dict()
    changed = [n for n in before if n.startswith(frozen) and not torch.equal(before[n], state[n])]
    got = [n for n, p in model.named_parameters() if n.startswith(frozen) and p.grad is not None]
    if changed or got:
        raise Failed(
            f"frozen, but trained: {', '.join([*changed, *got])}",
            "Do not set requires_grad or write into tensors of other parts",
        )
    if any(p.requires_grad for p in model.parameters()) and not moved:
        raise Failed(
            "nothing is trained when host and encoders are frozen", "Its tensors need gradients"
        )


def save(bench: Bench) -> None:
    """Saved and loaded, as a delta and in full, logits are bitwise equal and verify finds nothing.

    The encoders' tokenizers come back too.
    """
    expected = logits_of(bench.opened.model, bench.batch)
    full = bench.folder / "full"
    save_model(bench.opened.model, full, bench.opened.processor, full=True)
    for folder in (bench.saved, full):
        found = logits_of(load_model(folder), bench.batch)
        if not torch.equal(found, expected):
            raise Failed(
                f"saved and loaded, logits differ by {apart(found, expected)}",
                "Every value that `forward` needs is a parameter, a buffer, or an option of the "
                "constructor; nothing else is saved",
            )
        if problems := verify_model(folder):
            raise Failed(f"verify: {problems[0]}", "See the ledger")
    again = FusionProcessor.from_pretrained(bench.saved)(TEXTS, TARGETS)
    if any(not torch.equal(again[name], tensor) for name, tensor in bench.batch.items()):
        raise Failed("saved and loaded, the tokenizers give other ids", "See save_pretrained")


def batch(bench: Bench) -> None:
    """A sentence's logits do not depend on what else is in its batch."""
    together = logits_of(bench.opened.model, bench.batch)
    for row, (text, target) in enumerate(zip(TEXTS, TARGETS, strict=True)):
        alone = logits_of(bench.opened.model, bench.opened.processor([text], [target]))
        found = together[row : row + 1, : alone.shape[1]]
        if not torch.allclose(found, alone, atol=1e-4, rtol=1e-4):
            raise Failed(
                f"beside longer sentences, logits differ by {apart(found, alone)} from those of "
                "the sentence alone",
                "Padding is read: use `memory.mask` ([B, S], None where there is no padding)",
            )


def others(bench: Bench) -> None:
    """One part more, before this one in the recipe, leaves its initial values as they are."""
    side = "self" if bench.family.causal or not _has_cross(bench) else "cross"
    further = {
        "name": "further",
        "method": "gated",
        "encoder": "further",
        "sites": [f"decoder.-1.{side}_attention"],
    }
    encoder = Bench(bench.folder / "further", bench.host, {"further": EncoderChoice()}, [])
    source = {"further": {"source": str(encoder.encoder_folders["further"])}}
    first = bench.start.model.state_dict()
    second = bench.compose(glue=[further], encoders=source).model.state_dict()
    changed = [n for n in first if n not in second or not torch.equal(first[n], second[n])]
    if changed:
        raise Failed(
            f"with another part in the recipe, it starts differently: {', '.join(changed)}",
            "Let `initial` name rules; a value drawn in the constructor depends on what was "
            "drawn before",
        )


def _has_cross(bench: Bench) -> bool:
    return any(site.endswith("cross_attention") for site in bench.family.sites)


def dtype(bench: Bench) -> None:
    """In bfloat16 and float64 it runs, generates, and gives finite logits of that type."""
    expected = logits_of(bench.opened.model, bench.batch)
    for kind in (torch.bfloat16, torch.float64):
        model = load_model(bench.saved).to(kind)
        found = logits_of(model, bench.batch)
        if found.dtype is not kind or not bool(torch.isfinite(found).all()):
            raise Failed(
                f"in {kind} logits are {found.dtype}, or not finite",
                "Make tensors of x's or a parameter's dtype: x.new_zeros, states.to(x.dtype)",
            )
        if kind is torch.float64 and not torch.allclose(found.float(), expected, atol=1e-3):
            raise Failed(
                f"in float64 logits differ by {apart(found.float(), expected)}", "Do not cast down"
            )
        model.generate(**bench.source, num_beams=2, max_new_tokens=2)


def autocast(bench: Bench) -> None:
    """Trained in bf16 autocast, loss and gradients are finite, and the loss about the same.

    With the host's usual attention and with the plain form, whose masks have other dtypes.
    """
    model = bench.opened.model
    usual = model.host.config._attn_implementation
    try:
        for attention in dict.fromkeys((usual, "eager")):
            model.host.set_attn_implementation(attention)
            with kept(model):
                _trains_in_bf16(model, bench.batch, attention)
    finally:
        model.host.set_attn_implementation(usual)


def _trains_in_bf16(model: FusedModel, batch: Batch, attention: str) -> None:
    exact = loss_of(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, batch)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    wild = [name for name, grad in grads.items() if not bool(torch.isfinite(grad).all())]
    if wild or not torch.allclose(loss.float(), exact, rtol=0.05):
        raise Failed(
            f"in bf16 autocast, with {attention} attention, the loss is {float(loss):.4g} instead "
            f"of {float(exact):.4g}; gradients that are not finite: {', '.join(wild) or 'none'}",
            "Masks and tensors beside autocast's products take the dtype of what they meet",
        )


def checkpointing(bench: Bench) -> None:
    """With activations computed again in the backward pass, gradients are the same."""
    model = bench.opened.model
    if not model.host.supports_gradient_checkpointing:
        raise Skipped("the host's class has no activation checkpointing")
    logits_of(model, bench.batch)  # BigBird chooses its attention in its first pass
    found: list[dict[str, Tensor]] = []
    with kept(model):
        for enabled in (False, True):
            if enabled:
                model.activation_checkpointing_enable({"use_reentrant": False})
            model.zero_grad(set_to_none=True)
            model.clock.next_update(0)
            torch.manual_seed(0)
            loss_of(model.train(), bench.batch).backward()
            grads = ((n, p.grad) for n, p in model.named_parameters())
            found.append({n: grad.clone() for n, grad in grads if grad is not None})
        model.activation_checkpointing_disable()
    plain, again = found
    differ = [
        n for n in plain if n not in again or not torch.allclose(again[n], plain[n], atol=1e-5)
    ]
    if differ:
        raise Failed(
            f"with activation checkpointing other gradients: {', '.join(differ)}",
            "A second `forward` of a step must compute what the first did: draw in `draw`",
        )


def compiles(bench: Bench) -> None:
    """torch.compile traces the forward pass, and gives the same logits.

    The graphs are run by eager code: what a compiler makes of them is not glue's to answer for.
    """
    expected = logits_of(bench.opened.model, bench.batch)
    torch._dynamo.reset()
    compiled = torch.compile(bench.opened.model, backend="eager")
    source = {n: t for n, t in bench.batch.items() if n != "labels"}
    start = bench.opened.model.prepare_decoder_input_ids_from_labels(bench.batch["labels"])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        found = compiled(**source, decoder_input_ids=start).logits
    torch._dynamo.reset()
    if not torch.allclose(found, expected, atol=1e-4, rtol=1e-4):
        raise Failed(
            f"compiled, logits differ by {apart(found, expected)}",
            "Keep Python state that changes between calls out of `forward`",
        )


def host_logits(bench: Bench) -> Tensor:
    """Those of the plain transformers model; of a decoder-only one, of the model without glue."""
    model = bench.start.model
    if bench.family.causal:
        with model.without_glue():
            return logits_of(model, bench.batch)
    return logits_of(bench.plain_host, model.split_inputs(bench.batch)[1], shifts=model)


COMMON: dict[str, Check] = {
    "ledger": ledger,
    "neutral": neutral,
    "remove": remove,
    "effect": effect,
    "gradients": gradients,
    "freeze": freeze,
    "save": save,
    "generate": generate,
    "steps": steps,
    "reuse": reuse,
    "beams": beams,
    "batch": batch,
    "others": others,
    "dtype": dtype,
    "autocast": autocast,
    "checkpointing": checkpointing,
    "compile": compiles,
}
OF_ENCODERS: dict[str, Check] = {"hidden_states": hidden_states, "unfrozen": unfrozen}
OF_HOSTS: dict[str, Check] = {"sites": sites, "roles": roles, "states": states}
