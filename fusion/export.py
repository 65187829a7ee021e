"""The host of a saved model, in its own format: transformers', Marian's class, or fairseq's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor
from transformers import PretrainedConfig

from fusion.backwards import backwards
from fusion.checkpoints.directory import locate
from fusion.checkpoints.fairseq import describe_fairseq
from fusion.checkpoints.fairseq_files import write_fairseq
from fusion.errors import ModelError, nearest
from fusion.hosts.transformer_config import to_marian
from fusion.model import FusedModel
from fusion.processor import load_tokenizer
from fusion.saved import find_model, host_folder, load_model, write_tensors
from fusion.writing import whole


def export(
    model: str | Path, to: str, output: str | Path, sources: Mapping[str, str] | None = None
) -> Path:
    """Write the host of a saved model without its glue.

    Args:
        to: `hf`: its own transformers class; `marian-hf`: transformers' MarianMTModel; `fairseq`:
            a checkpoint, where the host came from one
        output: a new directory, or a new file for fairseq
        sources: part (`host` or an encoder's name) -> where its source is now

    Raises:
        ModelError: no such format, the host does not fit it, or `output` exists.
    """
    if to not in FORMATS:
        raise ModelError(f'no format "{to}"{nearest(to, FORMATS)}; known: {", ".join(FORMATS)}')
    output = Path(output)
    if output.exists():
        raise ModelError(f"{output}: exists; choose another place")
    directory = find_model(model)
    loaded = load_model(directory, sources)
    with whole(output) as temporary:
        FORMATS[to](loaded, directory, temporary)
    return output


def _hf(model: FusedModel, directory: Path, output: Path) -> None:
    host = model.remove_glue()
    tied = {e.name.removeprefix("host.") for e in model.ledger.part("host.") if e.tied_to}
    tensors = {name: t for name, t in host.state_dict().items() if name not in tied}
    _write(host.config, tensors, model, directory, output)


def _marian(model: FusedModel, directory: Path, output: Path) -> None:
    host = model.remove_glue()
    if host.config.model_type == "marian":
        _hf(model, directory, output)
    elif host.config.model_type == "fusion_transformer":
        config, tensors = to_marian(host)
        _write(config, tensors, model, directory, output)
    else:
        raise ModelError(f"{directory}: a {host.config.model_type} host is no Marian; use hf")


def _write(
    config: PretrainedConfig,
    tensors: dict[str, Tensor],
    model: FusedModel,
    directory: Path,
    output: Path,
) -> None:
    output.mkdir()
    seen: dict[int, str] = {}
    own = {n: t for n, t in tensors.items() if seen.setdefault(t.data_ptr(), n) == n}
    write_tensors(own, output / "model.safetensors")
    config.save_pretrained(output)
    model.generation_config.save_pretrained(output)
    load_tokenizer(directory / host_folder(model)).save_pretrained(output)


def _fairseq(model: FusedModel, directory: Path, output: Path) -> None:
    entries = [entry for entry in model.ledger.part("host.") if entry.keys]
    source = next((entry.source for entry in entries if entry.source is not None), None)
    if source is None or not source.startswith("fairseq:"):
        raise ModelError(f"{directory}: the host did not come from a fairseq checkpoint; use hf")
    foreign = describe_fairseq(locate(source.removeprefix("fairseq:")))
    tensors = backwards(entries, model.state_dict())
    write_fairseq(tensors, foreign.arguments, output, foreign.copies)


FORMATS: dict[str, Callable[[FusedModel, Path, Path], None]] = {
    "hf": _hf,
    "marian-hf": _marian,
    "fairseq": _fairseq,
}
