"""What does decoding with a fused model cost, against its host?

Every side translates the same sentences, greedily and with beam 5, and every output has the same
length: min_new_tokens = max_new_tokens. "Host" is transformers' own `generate` of the host's class;
"through fusion" is the same host as a model without glue: beams leave the source's keys and values
where they are. The fused model reads the encoder once per sentence; its share is measured by
itself. "Nothing kept" projects the memory's keys and values in every step and for every beam anew,
and repeats the memory for every beam.

    python -m benchmarks.decode_speed --scale quick
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import RESULTS, Spread, table
from benchmarks.records import print_record
from benchmarks.sides import DEVICE, GATED, SHAPES, Bench, against, in_turn
from fusion.composition import Composition
from fusion.model import FusedModel
from fusion.processor import FusionProcessor

PROGRAM = "decode_speed"
HOST = "host"
LIKE = "host through fusion"


@dataclass(frozen=True)
class Scale:
    """How much.

    Attributes:
        tokens: of every output
    """

    shape: str
    sentences: int
    tokens: int
    repetitions: int


SCALES = {
    "tiny": Scale("tiny", 6, 4, 5),
    "quick": Scale("small", 64, 20, 7),
    "full": Scale("small", 256, 20, 11),
}


@contextmanager
def nothing_kept(model: FusedModel) -> Iterator[None]:
    """Every decoder step projects every memory anew, once per beam."""

    def forget(decoder: Any, args: Any, kwargs: dict[str, Any]) -> None:
        for memory in model.placement.board.values():
            memory.reusable = False
            beams = kwargs["encoder_hidden_states"].shape[0] // memory.states.shape[0]
            memory.states = memory.states.repeat_interleave(beams, dim=0)
            if memory.mask is not None:
                memory.mask = memory.mask.repeat_interleave(beams, dim=0)

    hook = model.get_decoder().register_forward_pre_hook(forget, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def timed(work: Callable[[], Any]) -> float:
    """Seconds of some work."""
    began = time.perf_counter()
    with torch.inference_mode():
        work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def inputs_of(processor: FusionProcessor, lines: list[str]) -> dict[str, Tensor]:
    """A batch of them all."""
    return {name: tensor.to(DEVICE) for name, tensor in processor(lines).items()}


def sides(bench: Bench, scale: Scale, beams: int) -> dict[str, Callable[[int], float]]:
    """What is timed in a round."""
    lengths = {"min_new_tokens": scale.tokens, "max_new_tokens": scale.tokens}
    settings = {"num_beams": beams, "do_sample": False, **lengths}
    count = len(bench.text)
    middle = sorted(bench.text["source"], key=len)[count // 2 :][: scale.sentences]

    def generator(model: Any, inputs: dict[str, Tensor], around: Any = nullcontext) -> Any:
        def one_round(number: int) -> float:
            with around():
                return timed(lambda: model.generate(**inputs, **settings))

        return one_round

    host = placed(bench.host()[1])
    fused = placed(bench.fused(GATED)[1])
    of_host, of_fused = (inputs_of(c.processor, middle) for c in (host, fused))
    part = fused.model.encoder_parts["bert"]
    read = [of_fused[f"bert_{name}"] for name in ("input_ids", "attention_mask")]
    return {
        HOST: generator(host.model.host, of_host),
        LIKE: generator(host.model, of_host),
        "fused": generator(fused.model, of_fused),
        "fused, nothing kept": generator(fused.model, of_fused, lambda: nothing_kept(fused.model)),
        "the encoder alone": lambda number: timed(lambda: part(*read)),
    }


def placed(composition: Composition) -> Composition:
    """On the device, ready to generate."""
    composition.model.to(DEVICE).eval()
    return composition


def measure(scale: Scale, folder: Path) -> dict[str, Any]:
    """Seconds of every side, greedy and with beam 5."""
    bench = Bench(folder, SHAPES[scale.shape], 10 * scale.sentences)
    seconds = {
        name: in_turn(sides(bench, scale, beams), scale.repetitions)
        for name, beams in (("greedy", 1), ("beam 5", 5))
    }
    return {"text": bench.corpus, "sentences": scale.sentences, "tokens": scale.tokens} | {
        "seconds": seconds
    }


def section(content: dict[str, Any]) -> tuple[str, str]:
    """The table, and what it says."""
    lines = [["side", "search", "seconds", "of the host", "of the host through fusion"]]
    for search, found in content["seconds"].items():
        ratios = [against(found, base) for base in (HOST, LIKE)]
        for name, values in found.items():
            shown = (str(several[name]) for several in ratios)
            lines.append([name, search, str(Spread.of(values)), *shown])
    says = (
        f"{content['sentences']} sentences of the {content['text']} in one batch, outputs of "
        f"{content['tokens']} tokens, fp32, gated glue at every layer; medians of interleaved "
        "rounds with smallest and largest. Ratios are within a round. Of the host: against "
        "transformers' own `generate` of it, as it is decoded without fusion. Of the host through "
        "fusion: the same host as a model without glue, whose keys and values of the source stay "
        "where they are when beams change places; a fused model computes them once a sentence, too."
    )
    return says, table(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="quick")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="decode_speed_", ignore_cleanup_errors=True) as folder:
        found = measure(SCALES[arguments.scale], Path(folder))
    where = {"scale": arguments.scale, "folder": arguments.results}
    print_record(PROGRAM, found, [section(found)], **where)


if __name__ == "__main__":
    main()
