"""How long does it take to compose a model, against reading its bytes and the usual ways to load?

Sides, each in a process of its own, in turn: reading the same bytes; `from_pretrained` of host and
encoder; `torch.load` and `load_state_dict(strict=False)`; `fusion.compose` with digests known from
an earlier time, and for the first time. These two have gated glue at every layer, to be initialised
and digested; "little glue" has one projection (soft-prefix), to do what `from_pretrained` does.
Marian's class computes its table of positions, BART's is in the file: at quick scale BART alone,
which `from_pretrained` builds faster. The clock starts when everything is imported; memory is how
much the process's peak grew.

    python -m benchmarks.load_time --scale quick
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Spread, run_side, table
from benchmarks.records import print_record
from fusion.recipe import Recipe, validate_recipe

PROGRAM = "load_time"
# width, feed-forward width, layers of the encoder; layers of the host, per side
SIZES = {"1 MB": (16, 32, 1, 1), "100 MB": (512, 2048, 4, 2), "1 GB": (1024, 4096, 14, 4)}
HOSTS = ("marian", "bart")
LITTLE = "fusion, little glue"
SIDES = ["read bytes", "from_pretrained", "strict=False", LITTLE, "fusion", "fusion, first time"]


@dataclass(frozen=True)
class Scale:
    """How much: sizes, hosts and repetitions of each side."""

    sizes: tuple[str, ...]
    hosts: tuple[str, ...]
    repetitions: int


SCALES = {
    "tiny": Scale(("1 MB",), HOSTS[:1], 1),
    "quick": Scale(("100 MB",), HOSTS[1:], 5),
    "full": Scale(("100 MB", "1 GB"), HOSTS, 5),
}


def make(folder: Path, size: str, kind: str = "marian") -> None:
    """A host and a BERT encoder with random weights, as safetensors and as torch files."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForSeq2SeqLM,
        BertConfig,
        BertModel,
        BertTokenizerFast,
    )

    width, inner, deep, layers = SIZES[size]
    sides = ("encoder", "decoder")
    host = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(
            kind,
            vocab_size=8000,
            d_model=width,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
            **{f"{side}_layers": layers for side in sides},
            **{f"{side}_ffn_dim": inner for side in sides},
            **{f"{side}_attention_heads": 8 for side in sides},
        )
    )
    bert = BertModel(
        BertConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=deep,
            num_attention_heads=8,
        ),
        add_pooling_layer=False,
    )
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    for name, model in (("host", host), ("bert", bert)):
        model.save_pretrained(folder / name, max_shard_size="10GB")
        tokenizer.save_pretrained(folder / name)
        torch.save(model.state_dict(), folder / f"{name}.pt")


def read_bytes(folder: Path) -> Callable[[], Any]:
    files = [folder / name / "model.safetensors" for name in ("host", "bert")]
    return lambda: [_drain(path) for path in files]


def _drain(path: Path) -> int:
    total = 0
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(2**22)
        while read := file.readinto(buffer):
            total += read
    return total


def from_pretrained(folder: Path) -> Callable[[], Any]:
    from transformers import AutoModelForSeq2SeqLM, BertModel

    return lambda: [
        AutoModelForSeq2SeqLM.from_pretrained(folder / "host"),
        BertModel.from_pretrained(folder / "bert", add_pooling_layer=False),
    ]


def strict_false(folder: Path) -> Callable[[], Any]:
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, BertModel

    def load() -> Any:
        models = []
        for name, build in (("host", AutoModelForSeq2SeqLM.from_config), ("bert", BertModel)):
            model = build(AutoConfig.from_pretrained(folder / name))
            state = torch.load(folder / f"{name}.pt", weights_only=True)
            model.load_state_dict(state, strict=False)
            models.append(model)
        return models

    return load


def composed_recipe(folder: Path, method: str = "gated") -> Recipe:
    """A recipe of the host and the encoder in a folder, with glue at the method's own sites."""
    raw = {
        "name": "load",
        "output": str(folder / "out"),
        "host": {"source": str(folder / "host")},
        "encoders": {"bert": {"source": str(folder / "bert")}},
        "glue": [{"method": method, "encoder": "bert"}],
        "data": {"train": {"synthetic": "train"}, "dev": {"synthetic": "dev"}},
    }
    return validate_recipe(raw, folder / "load.yaml")


def fusion_compose(folder: Path, method: str = "gated") -> Callable[[], Any]:
    from fusion.composition import compose

    recipe = composed_recipe(folder, method)
    return lambda: compose(recipe)


def measure(side: str, folder: Path) -> dict[str, float]:
    """Seconds of one side and MiB by which the process's peak memory grew."""
    if side == "fusion, first time":
        os.environ["FUSION_CACHE"] = tempfile.mkdtemp(dir=folder)
    build = {
        "read bytes": read_bytes,
        "from_pretrained": from_pretrained,
        "strict=False": strict_false,
        LITTLE: partial(fusion_compose, method="soft-prefix"),
    }.get(side, fusion_compose)
    work = build(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    del kept
    return {"seconds": seconds, "mib": grown / 1024}


def compare(size: str, kind: str, repetitions: int) -> dict[str, Any]:
    """Every side in turn, repetition after repetition; the first round warms the page cache."""
    folder = Path(tempfile.mkdtemp(prefix="load_time_"))
    os.environ["FUSION_CACHE"] = str(folder / "cache")
    try:
        make(folder, size, kind)
        total = sum((folder / n / "model.safetensors").stat().st_size for n in ("host", "bert"))
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for repetition in range(repetitions + 1):
            for side in SIDES:
                one = run_side("benchmarks.load_time", "--side", side, "--folder", str(folder))
                if repetition:
                    found[side].append(one)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"bytes": total, "sides": found}


def section(results: dict[str, Any], repetitions: int) -> tuple[str, str]:
    """The table, and what it says."""
    head = ["weights", "host", "side", "seconds", "against from_pretrained"]
    rows = [[*head, "peak memory grew by (MiB)"]]
    for content in results.values():
        base = Spread.of([one["seconds"] for one in content["sides"]["from_pretrained"]])
        for side, found in content["sides"].items():
            seconds = Spread.of([one["seconds"] for one in found])
            memory = Spread.of([one["mib"] for one in found])
            ratio = f"{seconds.median / base.median:.2f}"
            shown = f"{content['bytes'] / 1e6:.0f} MB"
            rows.append([shown, content["host"], side, str(seconds), ratio, f"{memory.median:.0f}"])
    says = (
        "Loading a host and an encoder, each side in a process of its own; medians of interleaved "
        f"rounds ({repetitions}) with smallest and largest."
    )
    return says, table(rows)


def main() -> None:
    """Measure all sizes and print them, or one side for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="quick")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.folder)))
        return
    scale = SCALES[arguments.scale]
    results = {
        f"{size}, {kind}": compare(size, kind, scale.repetitions) | {"host": kind}
        for size in scale.sizes
        for kind in scale.hosts
    }
    shown = section(results, scale.repetitions)
    where = {"scale": arguments.scale, "folder": arguments.results}
    print_record(PROGRAM, results, [shown], **where)


if __name__ == "__main__":
    main()
