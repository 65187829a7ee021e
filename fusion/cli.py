"""The command line: one function call per command; a user's mistake is one message and exit 2."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.table import Table

from fusion.display import out, show_caches, show_entry, show_ledger, show_plan, show_run
from fusion.errors import DataError, FusionError, TrainingError
from fusion.recipe import byte_size, load_recipe, recipe_schema
from fusion.registry import ALL

if TYPE_CHECKING:
    from fusion.model import FusedModel
    from fusion.processor import FusionProcessor

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Composite NMT models: a host, pretrained encoders and glue; every tensor accounted for.",
)
keymap = typer.Typer(no_args_is_help=True, help="Rules between differing tensor names.")
app.add_typer(keymap, name="keymap")
cache = typer.Typer(no_args_is_help=True, help="The memory of frozen encoders, on disk.")
app.add_typer(cache, name="cache")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=value ...]", help="override keys of the recipe")
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="a saved model, or a run's output")]
AsJson = Annotated[bool, typer.Option("--json", help="for machines")]
Full = Annotated[
    bool, typer.Option("--full", help="save the weights too that are unchanged from their source")
]
Moved = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="PART=DIR", help="where a part's source is now"),
]
CacheDir = Annotated[
    Path | None, typer.Option("--dir", help="memory_cache.dir of a recipe; default: the usual one")
]
Beams = Annotated[int | None, typer.Option(min=1, help="beam size; default: the model's own")]

INTERRUPTED = 130  # the exit status of Ctrl-C


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    lock: Annotated[bool, typer.Option("--lock", help="write RECIPE.lock")] = False,
    diff: Annotated[
        Path | None, typer.Option(help="another recipe, or a plan's JSON: show what differs")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="what a corpus costs: recipe, multi30k, iwslt14, wmt14, or pairs such as 100M"
        ),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="cpu2, cpu16, t4, a100, h100, ...; here: measure this one")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="the memory with and without each saving")
    ] = False,
    fit: Annotated[
        str | None, typer.Option(help="propose settings that need at most so much memory: 16GB")
    ] = None,
) -> None:
    """Say where every tensor will come from, and the memory; reads configs and headers only."""
    loaded = load_recipe(recipe, overrides)
    limit = None if fit is None else byte_size(fit, "--fit")
    from fusion import composition
    from fusion.lock import differences, write_lock

    planned = composition.plan(loaded)
    content = asdict(planned)
    if diff is not None:
        for line in differences(_other_plan(diff), content) or ["the plans are the same"]:
            out.print(line)
    else:
        from fusion.estimates.report import Asked, report

        found = report(
            lambda more: load_recipe(recipe, [*(overrides or []), *more]),
            Asked(data, hardware, memory, limit),
        )
        if as_json:
            print(json.dumps(content | found.to_json(), indent=2))
        else:
            show_plan(planned)
            found.show(out)
        if found.fit is not None and not found.fit.fits:
            raise FusionError(found.fit.says_no)
    if planned.problems:
        raise FusionError("\n".join(planned.problems))
    if lock:
        out.print(f"locked in {write_lock(loaded, recipe)}")


def _other_plan(file: Path) -> Any:
    """The plan of a recipe, or one that `fusion plan --json` printed."""
    if file.suffix != ".json":
        from fusion import composition

        return asdict(composition.plan(load_recipe(file)))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {key: content[key] for key in ("name", "parts", "problems", "notes")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FusionError(f"{file}: not a plan in JSON: {error}") from None


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Compose, and run one batch forward and backward: neutral start, gradients, frozen parts."""
    loaded = load_recipe(recipe, overrides)
    from fusion.train import check as check_recipe

    findings = check_recipe(loaded, say=_say)
    for line in findings.held:
        out.print(line)
    if findings.problems:
        raise FusionError("\n".join(findings.problems))


@app.command()
def build(
    recipe: RecipeFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="directory of the model")],
    overrides: Overrides = None,
    full: Full = False,
) -> None:
    """Compose a recipe's model and save it, untrained."""
    loaded = load_recipe(recipe, overrides)
    from fusion.saved import save_model
    from fusion.train import build_composition

    composition = build_composition(loaded)
    save_model(composition.model, output, composition.processor, full=full)
    show_ledger(composition.ledger)
    out.print(f"saved in {output}")


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="refuse if anything differs from RECIPE.lock")
    ] = False,
    full: Full = False,
) -> None:
    """Compose, train, evaluate and save; the same command again resumes."""
    loaded = load_recipe(recipe, overrides)
    if locked:
        from fusion.lock import check_lock

        check_lock(loaded, recipe)
    from fusion.outcome import finished_run
    from fusion.parts import host_recipe
    from fusion.train import run

    first = int(os.environ.get("RANK", "0")) == 0
    result = run(loaded, say=_say if first else _hush, full=full)
    if first:
        below, host = host_recipe(loaded), None
        if below is not None:
            with contextlib.suppress(TrainingError):  # its recipe was changed since
                host = finished_run(below)
        show_run(loaded, result, host)


@app.command()
def translate(
    model: Model,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="default: stdin")] = None,
    beams: Beams = None,
    buffer_size: Annotated[int, typer.Option(min=1, help="lines translated at a time")] = 1000,
    moved: Moved = None,
) -> None:
    """Translate raw text: a line in, a line out, in order."""
    loaded, processor = _load(model, moved)
    from fusion.translate import translate_stream

    settings = {} if beams is None else {"num_beams": beams}
    try:
        stream = sys.stdin.buffer if file is None else file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    if file is None and sys.stdin.isatty():
        buffer_size = 1
    with stream:
        lines = translate_stream(loaded, processor, stream, buffer_size=buffer_size, **settings)
        for line in lines:
            sys.stdout.buffer.write(line.encode("utf-8") + b"\n")
            sys.stdout.buffer.flush()


@app.command()
def evaluate(
    model: Model,
    source: Annotated[Path, typer.Option(help="source text, one sentence a line")],
    reference: Annotated[Path, typer.Option(help="its reference translation")],
    compare: Annotated[
        Path | None, typer.Option(help="another output, for a paired bootstrap test")
    ] = None,
    beams: Beams = None,
    moved: Annotated[
        list[str] | None,
        typer.Option("--moved", metavar="PART=DIR", help="where a part's source is now"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Translate and score with sacreBLEU: BLEU and chrF with their signatures."""
    from fusion.data import read_lines
    from fusion.evaluate import compare as compare_outputs
    from fusion.evaluate import score

    sources, references = read_lines(source, "--source"), read_lines(reference, "--reference")
    other = read_lines(compare, "--compare") if compare is not None else None
    for file, lines in ((reference, references), (compare, other)):
        if lines is not None and len(sources) != len(lines):
            raise DataError(f"{source} has {len(sources)} lines and {file} has {len(lines)}")
    loaded, processor = _load(model, moved)
    from fusion.translate import translate as translate_lines

    settings = {} if beams is None else {"num_beams": beams}
    texts = translate_lines(loaded, processor, sources, **settings)
    language = getattr(processor.tokenizer, "target_lang", None)
    result = score(texts, references, language)
    content: dict[str, Any] = result.to_json()
    if other is not None:
        content["comparison"] = compare_outputs(
            texts, other, references, target_lang=language
        ).to_json()
    if as_json:
        print(json.dumps(content, indent=2))
        return
    for item in (result.bleu, result.chrf):
        out.print(f"{item.name} {item.score:.2f}  {item.signature}")
    for name, item in content.get("comparison", {}).items():
        out.print(f"{name} against {compare}: {item}")


@app.command()
def inspect(
    model: Model,
    tensor: Annotated[str | None, typer.Option(help="one tensor by name")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the ledger: where every tensor came from."""
    from fusion.saved import read_ledger

    ledger = read_ledger(model)
    if tensor is not None:
        if tensor not in ledger.entries:
            from fusion.errors import nearest

            raise FusionError(f'no tensor "{tensor}"{nearest(tensor, ledger.entries)}')
        show_entry(ledger[tensor])
    elif as_json:
        print(ledger.to_json(), end="")
    else:
        show_ledger(ledger)
        for name, reason in ledger.ignored.items():
            out.print(f"left out: {name}: {reason}")


@app.command()
def verify(model: Model, moved: Moved = None) -> None:
    """Check by digest that saved tensors are what the ledger says, and frozen ones their source."""
    from fusion.saved import read_ledger
    from fusion.verify import verify_model

    problems = verify_model(model, _places(moved))
    if problems:
        raise FusionError("\n".join(problems))
    ledger = read_ledger(model)
    frozen = sum(entry.frozen and entry.digest is not None for entry in ledger)
    out.print(f"{model}: all {len(ledger)} tensors are what the ledger says; {frozen} frozen")


@app.command()
def export(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="hf, marian-hf or fairseq")],
    output: Annotated[Path, typer.Option("-o", "--output", help="a new directory or file")],
    moved: Moved = None,
) -> None:
    """Give the host back, without glue, in its own format."""
    from fusion.export import export as export_host

    out.print(f"exported to {export_host(model, to, output, _places(moved))}")


@keymap.command()
def suggest(
    target: Annotated[
        str, typer.Argument(help="a recipe, a directory with config.json, or a checkpoint")
    ],
    source: Annotated[
        str | None,
        typer.Argument(
            help="the checkpoint that is to be loaded; default: the one of the recipe's part"
        ),
    ] = None,
    source_format: Annotated[
        str | None, typer.Option("--format", help="of the source; by default its content decides")
    ] = None,
    part: Annotated[
        str, typer.Option(help="of the recipe: host, an encoder's or a glue's name")
    ] = "host",
) -> None:
    """Propose rules, to be read and pasted into a recipe; nothing is applied."""
    is_recipe = Path(target).suffix in (".yaml", ".yml")
    if source is None and not is_recipe:
        raise FusionError("keymap suggest: say the checkpoint too: keymap suggest TARGET SOURCE")
    recipe = load_recipe(target) if is_recipe else None
    from fusion.checkpoints.directory import open_source
    from fusion.proposals import propose
    from fusion.suggest import suggest_for

    opened = open_source(source, source_format) if source is not None else None
    if recipe is not None:
        text = suggest_for(recipe, part, opened).to_yaml()
    else:
        assert opened is not None
        text = propose(target, opened).to_yaml()
    print(text, end="")


@app.command(name="list")
def list_names() -> None:
    """Hosts, encoders, glue, sources and inits, and where each comes from."""
    table = Table("kind", "name", "from")
    broken = []
    for registry in ALL:
        for row in registry.listing():
            table.add_row(row.kind, row.name, row.error or row.origin)
            broken += [row.error] if row.error is not None else []
    out.print(table)
    if broken:
        raise FusionError("\n".join(broken))


@app.command(name="recipe-schema")
def print_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    print(json.dumps(recipe_schema(), indent=2))


@cache.command(name="ls")
def list_caches(directory: CacheDir = None, as_json: AsJson = False) -> None:
    """What is there, least recently used first."""
    from fusion.memory_cache.listing import caches

    root = _cache_root(directory)
    found = caches(root)
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=2))
        return
    show_caches(found, root)


@cache.command(name="prune")
def prune_caches(
    directory: CacheDir = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="remove the least recently used until this is left: 20GB")
    ] = None,
    unused_days: Annotated[
        float | None, typer.Option(min=0, help="remove what was not used for so many days")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="remove all")] = False,
) -> None:
    """Remove caches; a run that reads one keeps what it has mapped."""
    from fusion.memory_cache.listing import prune, shown_bytes

    if max_bytes is None and unused_days is None and not everything:
        raise FusionError("cache prune: say what goes: --max-bytes 20GB, --unused-days 30 or --all")
    limit = None if max_bytes is None else byte_size(max_bytes, "--max-bytes")
    since = None if unused_days is None else time.time() - unused_days * 86400
    root = _cache_root(directory)
    removed, problems = prune(root, limit, float("inf") if everything else since)
    for one in removed:
        out.print(f"removed {one.directory}: {shown_bytes(one.bytes)}")
    out.print(f"{root}: {len(removed)} removed")
    if problems:
        raise FusionError("\n".join(problems))


@cache.command(name="verify")
def verify_caches(directory: CacheDir = None) -> None:
    """Compare every block with its checksum; a bad one is computed again when it is next needed."""
    from fusion.memory_cache.listing import bad_blocks, caches

    root = _cache_root(directory)
    paths = [path for one in caches(root) for path in one.blocks]
    bad = bad_blocks(paths)
    if bad:
        raise FusionError(
            "\n".join(f"{path}: {why}" for path, why in bad.items())
            + f"\n{len(bad)} of {len(paths)} blocks are bad; training drops and computes them again"
        )
    out.print(f"{root}: all {len(paths)} blocks are what was written")


def _cache_root(directory: Path | None) -> Path:
    from fusion.memory_cache.store import default_directory

    root = default_directory() if directory is None else directory
    if not root.is_dir() and (directory is not None or root.exists()):
        raise FusionError(f"{root}: no such directory")
    return root


def main() -> NoReturn:
    """Run the command line."""
    try:
        status = app(standalone_mode=False)  # of an interruption; commands themselves return None
    except FusionError as error:
        _fail(str(error))
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.strerror is None:
            raise
        _fail(": ".join(str(part) for part in (error.filename, error.strerror) if part))
    except Exception as error:
        message = getattr(error, "format_message", None)  # click's usage errors
        if message is None:
            raise
        _fail(message())
    if status == INTERRUPTED:
        print("fusion: interrupted", file=sys.stderr)
    sys.exit(status or 0)


def _fail(message: str) -> NoReturn:
    print(f"fusion: {message}", file=sys.stderr)
    sys.exit(2)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _hush(text: str) -> None:
    """The other ranks say nothing."""


def _places(moved: list[str] | None) -> dict[str, str]:
    """Part -> where its source is now, of `--source PART=DIR`."""
    pairs = [pair.partition("=") for pair in moved or ()]
    for part, equals, _ in pairs:
        if not equals:
            raise FusionError(f"{part}: write it as PART=DIR, for example bert=DIR")
    return {part: place for part, _, place in pairs}


def _load(path: Path, moved: list[str] | None = None) -> tuple[FusedModel, FusionProcessor]:
    from fusion.saved import find_model

    directory = find_model(path)
    import torch

    from fusion.processor import FusionProcessor
    from fusion.saved import load_model

    model = load_model(directory, _places(moved))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, FusionProcessor.from_pretrained(directory)
