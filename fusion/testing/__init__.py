"""Checks that every host, encoder and glue method must pass; one line of pytest per part.

In a plug-in's own tests::

    from fusion.testing import check_encoder, check_glue, check_host

    def test_my_glue() -> None:
        check_glue("my-glue")

A check makes tiny real models with random weights in a temporary folder; it needs no network and
takes seconds. What does not hold is one `CheckFailure`, which names the part, the check, what was
found and what to do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fusion.glue.base import Glue
from fusion.hosts.family import Family
from fusion.registry import GLUE, HOSTS
from fusion.testing.bench import Bench, EncoderChoice, HostChoice
from fusion.testing.checks import COMMON, OF_ENCODERS, OF_HOSTS, Check
from fusion.testing.hosts import ABSENT, HOST_LIMITS, TINY_HOSTS
from fusion.testing.report import CheckFailure, Report, insist, run_checks

__all__ = [
    "COMMON",
    "OF_ENCODERS",
    "OF_HOSTS",
    "CheckFailure",
    "EncoderChoice",
    "Report",
    "check_encoder",
    "check_glue",
    "check_host",
]


def check_glue(
    method: str,
    *,
    hosts: Collection[str] = ("marian", "t5"),
    encoder: EncoderChoice | None = None,
    sites: list[str] | None = None,
    skip: Collection[str] = (),
    **options: Any,
) -> list[Report]:
    """Check a glue method in some hosts, on a BERT whose width is not theirs.

    Args:
        method: its name in recipes
        hosts: rows of `TINY_HOSTS`, or families; by default one with norms after the residual, one
            before
        encoder: what it reads
        sites: by default the method's own
        skip: names of checks, keys of `COMMON`
        options: the method's

    Raises:
        CheckFailure: lists every check that does not hold.
    """
    reports = []
    for host in hosts:
        spec = _glue_spec(method, host, sites, options)
        encoders = {}
        if spec.get("encoder"):
            encoders["bert"] = encoder or EncoderChoice(settings=_settings(method, options))
        reports.append(
            _run(f"{method} in {host}", HostChoice(host), encoders, [spec], COMMON, skip),
        )
    return insist(reports)


def check_host(
    name: str,
    options: dict[str, Any] | None = None,
    *,
    method: str = "gated",
    skip: Collection[str] = (),
    absent: Mapping[str, str] | None = None,
) -> list[Report]:
    """Check a host family: every row of its sites alone, and glue in the usual ones.

    Args:
        name: the family's, or a row of `TINY_HOSTS`
        options: of a tiny config of it; by default sizes by the names that configs usually have
        method: the glue
        skip: names of checks, keys of `COMMON` and `OF_HOSTS`
        absent: rows of the family's `sites` that this host of it does not have -> why

    Raises:
        CheckFailure: lists every check that does not hold.
    """
    spec = _glue_spec(method, name, None, {})
    encoders = {"bert": EncoderChoice(settings=_settings(method, {}))}
    host = HostChoice(name, options, {**ABSENT.get(name, {}), **(absent or {})})
    return insist([_run(name, host, encoders, [spec], OF_HOSTS | COMMON, skip)])


def check_encoder(
    choice: EncoderChoice, *, host: str = "marian", skip: Collection[str] = ()
) -> list[Report]:
    """Check an encoder: its hidden states, its training, and gated glue that reads its last layer.

    Args:
        choice: a tiny config of it, and its builder and tokenizer if they are its own
        skip: names of checks, keys of `COMMON` and `OF_ENCODERS`

    Raises:
        CheckFailure: lists every check that does not hold.
    """
    name = str(choice.config.model_type)
    spec = _glue_spec("gated", host, None, {})
    checks = OF_ENCODERS | COMMON
    return insist([_run(name, HostChoice(host), {"bert": choice}, [spec], checks, skip)])


def _run(
    part: str,
    host: HostChoice,
    encoders: dict[str, EncoderChoice],
    glue: list[dict[str, Any]],
    checks: dict[str, Check],
    skip: Collection[str],
) -> Report:
    limits = {check: why for (name, check), why in HOST_LIMITS.items() if name == host.name}
    with tempfile.TemporaryDirectory() as folder:
        return run_checks(part, Bench(Path(folder), host, encoders, glue), checks, skip, limits)


def _glue_spec(
    method: str, host: str, sites: list[str] | None, options: dict[str, Any]
) -> dict[str, Any]:
    """A recipe's glue entry."""
    glue: type[Glue] = GLUE.get(method)
    family: Family = HOSTS.get(TINY_HOSTS.get(host, (host, {}))[0])
    chosen = sites or list(glue.causal_sites if family.causal else glue.default_sites)
    spec: dict[str, Any] = {"method": method, "sites": chosen, **options}
    return spec | ({"encoder": "bert"} if glue.reads_memory else {})


def _settings(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """What the encoder must give for a method."""
    glue: type[Glue] = GLUE.get(method)
    return {"layer": "all"} if glue.reads_layers or options.get("last") else {}
