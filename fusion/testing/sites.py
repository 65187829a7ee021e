"""Checks of a family's sites, on its host without glue: each is where its name says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fusion.hosts.family import Family
from fusion.hosts.site import HostBranch, Reader, Seat, attach, detach
from fusion.keymap import Pattern
from fusion.testing.bench import Bench
from fusion.testing.report import Failed

SOURCE, TARGET = 8, 6  # positions of the texts that the host is given
WORDS = torch.arange(5, 33)  # ids of the letters in the kit's own tokenizer
Ids = tuple[Tensor, Tensor]
Seen = dict[str, tuple[Tensor, Tensor]]


@dataclass
class _Host:
    """A host without glue, its sites, and two sources and translations that share no token."""

    family: Family
    model: PreTrainedModel
    seats: dict[str, Seat]
    ids: tuple[Ids, Ids]

    def logits(self, ids: Ids) -> Tensor:
        """What it gives for a source and a translation; a decoder-only one reads both in a row."""
        source, target = ids
        with torch.no_grad():
            if self.family.causal:
                given = {"input_ids": torch.cat([source, target], dim=1)}
            else:
                given = {"input_ids": source, "decoder_input_ids": target}
            mask = torch.ones_like(given["input_ids"])
            logits: Tensor = self.model(**given, attention_mask=mask).logits
        return logits

    def read(self, ids: Ids) -> tuple[Tensor, Seen]:
        """The logits, and `x` and the host's own output at every site that runs."""
        seen: Seen = {}

        def reader(site: str) -> Reader:
            def read(x: Tensor, host: HostBranch) -> Tensor:
                seen[site] = x, host()
                return seen[site][1]

            return read

        return self._with({site: reader(site) for site in self.seats}, ids, None), seen

    def replaced(self, site: str, ids: Ids) -> Tensor:
        """The logits with fixed random values as the output at a site."""

        def read(x: Tensor, host: HostBranch) -> Tensor:
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            return noise.to(x.dtype)

        return self._with({site: read}, ids, self.family.rest)

    def _with(self, readers: dict[str, Reader], ids: Ids, rest: Any) -> Tensor:
        try:
            for site, reader in readers.items():
                attach(self.seats[site], reader, rest)
            return self.logits(ids)
        finally:
            for site in readers:
                detach(self.seats[site])

    def changed(self, site: str) -> Ids:
        """The first texts with the other one on a site's side."""
        (source, target), (other_source, other_target) = self.ids
        if self.family.causal:
            return other_source, other_target
        return (other_source, target) if site.startswith("encoder.") else (source, other_target)

    def row(self, row: str) -> list[str]:
        """The sites of a row, in order."""
        pattern = Pattern(row)
        return [site for site in self.seats if pattern.match(site) is not None]


def sites(bench: Bench) -> None:
    """Every row names modules, each its own, that run; x and output are as wide as it says."""
    host = _host(bench)
    for row, where in bench.family.sites.items():
        if not host.row(row) and row not in bench.host.absent:
            named = [one if isinstance(one, str) else one.module for one in _several(where)]
            raise Failed(
                f'sites: "{row}" names no module: {", ".join(named)}',
                "`host.named_modules()` has the names; one that two parts share has its first",
            )
    owners: dict[int, str] = {}
    for site, seat in host.seats.items():
        owner = owners.setdefault(id(seat.module), site)
        if owner != site:
            raise Failed(f"{owner} and {site} are one module", "Every site has a module of its own")
    before = host.logits(host.ids[0])
    logits, seen = host.read(host.ids[0])
    for site in host.seats:
        if site not in seen:
            raise Failed(
                f"the module of {site} does not run in a forward pass",
                "Name the module that the host's own code calls",
            )
        x, own = seen[site]
        rows, width = len(host.ids[0][0]), bench.family.width(host.model.config, site)
        if x.shape != own.shape or (x.shape[0], x.shape[-1]) != (rows, width):
            raise Failed(
                f"{site}: x has shape {list(x.shape)}, the output {list(own.shape)}; both should "
                f"be [{rows}, positions, {width}]",
                "See At's `query`, `x` and `time_major`, and the family's `encoder_width` and "
                "`decoder_width`",
            )
    if not torch.equal(logits, before):
        raise Failed("to read at every site changes the logits", "See At")


def roles(bench: Bench) -> None:
    """Sites are on their side; attention reads positions, cross-attention the encoder's; norms."""
    host = _host(bench)
    _, base = host.read(host.ids[0])
    for side in ("encoder", "decoder"):
        mine = [site for site in host.seats if site.startswith(f"{side}.")]
        if not mine:
            continue
        other = "decoder" if side == "encoder" else "encoder"
        _, seen = host.read(host.changed(mine[0]))
        for site in mine:
            if _same(seen[site][1], base[site][1]):
                raise Failed(
                    f"the output at {site} does not change with what the {side} reads",
                    f"Its module is not in the {side}",
                )
        if side == "decoder":
            continue
        _, seen = host.read(host.changed("decoder."))
        for site in mine:
            if not _same(seen[site][1], base[site][1]):
                raise Failed(
                    f"the output at {site} changes with what the {other} reads",
                    f"Its module is not in the {side}",
                )
    _attention(host, base)
    _norms(host, base)


def _attention(host: _Host, base: Seen) -> None:
    """In a first layer x depends on its own position alone, so what the output tells is the rest.

    Raises:
        Failed: a self-attention does not read another position, or reads the encoder's states; or
            a cross-attention does not read them.
    """
    (source, target), (other_source, other_target) = host.ids
    near_source, near_target = source.clone(), target.clone()
    near_source[:, 1], near_target[:, 0] = other_source[:, 1], other_target[:, 0]
    if host.family.causal:
        near_source = torch.cat([other_source[:, :1], source[:, 1:]], dim=1)
    _, near = host.read((near_source, near_target))
    for side, place in (("encoder", 0), ("decoder", 1)):
        if not (found := host.row(f"{side}.{{i}}.self_attention")):
            continue
        (x, own), (x_before, before) = ([t[:, place] for t in s[found[0]]] for s in (near, base))
        if _same(x, x_before) and _same(own, before):
            raise Failed(
                f"{found[0]}: the output at a position does not change with the one beside it",
                "Name the whole attention sublayer before its residual",
            )
    if host.family.causal:
        return
    _, seen = host.read((other_source, target))
    for kind, reads in (("self", False), ("cross", True)):
        if not (found := host.row(f"decoder.{{i}}.{kind}_attention")):
            continue
        (x, own), (x_before, before) = seen[found[0]], base[found[0]]
        if _same(x, x_before) and _same(own, before) == reads:
            does = "does not change" if reads else "changes"
            raise Failed(
                f"{found[0]}: for the same x the output {does} with the encoder's states",
                "cross_attention reads the encoder's states, self_attention does not",
            )


def _norms(host: _Host, base: Seen) -> None:
    """A post-norm sublayer's x is what the layer before gives; a pre-norm one's is its norm's.

    Raises:
        Failed: `norm` says the other.
    """
    for side in ("encoder", "decoder"):
        outputs = host.row(f"{side}.{{i}}.output")
        attentions = host.row(f"{side}.{{i}}.self_attention")
        if len(outputs) < 2 or len(attentions) < 2:
            continue
        (x, _), (_, given) = base[attentions[1]], base[outputs[0]]
        says = host.family.norm_at(host.model.config, attentions[1])
        if _same(x, given) != (says == "post"):
            what = "is" if says != "post" else "is not"
            raise Failed(
                f"norm is {says}, but x at {attentions[1]} {what} the output at {outputs[0]}",
                "`norm` is post where the norm comes after the residual, pre where before, both "
                "where there are two",
            )


def states(bench: Bench) -> None:
    """Outputs matter; a layer's, a side's and embeddings are the whole state, a sublayer's is not.

    Looked at in the last layer, with fixed values in place of a site's output.
    """
    host = _host(bench)
    before = host.logits(host.ids[0])
    for row in bench.family.sites:
        if not (found := host.row(row)):
            continue
        site = found[-1]
        fixed = host.replaced(site, host.ids[0])
        if _same(fixed, before) or not bool(fixed.isfinite().all()):
            raise Failed(
                f"with other values as the output at {site}, logits are the same or not finite",
                "Name the module whose output the host goes on with; see the family's `rest`",
            )
        whole = _same(fixed, host.replaced(site, host.changed(site)))
        if whole == (host.seats[site].at.x == "output"):
            continue
        if whole:
            raise Failed(
                f"with fixed values as the output at {site}, nothing of the text is left",
                "It holds the residual too: name the sublayer alone, before the residual",
            )
        raise Failed(
            f"with fixed values as the output at {site}, logits still depend on the text",
            "Something goes past it: name the module that gives the whole state, residual "
            'included (`x="output"` says so)',
        )


def _host(bench: Bench) -> _Host:
    one, other = WORDS[: len(WORDS) // 2], WORDS[len(WORDS) // 2 :]
    ids = (
        (_text(one, SOURCE), _text(one.flip(0), TARGET)),
        (_text(other, SOURCE), _text(other.flip(0), TARGET)),
    )
    found = _Host(bench.family, bench.plain_host, {}, ids)
    found.logits(ids[0])  # BigBird chooses its attention in its first pass
    found.seats = bench.family.find_sites(found.model)
    return found


def _text(words: Tensor, length: int) -> Tensor:
    """Two rows of some words."""
    return torch.stack([words[:length], words[1 : length + 1]])


def _several(where: Any) -> tuple[Any, ...]:
    return where if isinstance(where, tuple) else (where,)


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5, rtol=1e-4)
