"""The command line: instant help, and for every mistake one message, exit status 2, no traces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.composition import compose
from fusion.recipe import Recipe
from fusion.saved import save_model

RecipeMaker = Callable[..., Recipe]

DRIVER = """
import contextlib, io, json, sys
from fusion.cli import main
results = []
for arguments in json.load(sys.stdin):
    sys.argv = ["fusion", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
    results.append([status, out.getvalue(), err.getvalue()])
loaded = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps([results, loaded]))
"""

Result = tuple[object, str, str]


def run_all(commands: list[list[str]], folder: Path) -> tuple[list[Result], list[str]]:
    """Run commands one after the other in one process: their results, and the modules loaded."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    results, loaded = json.loads(done.stdout.splitlines()[-1])
    return [tuple(result) for result in results], loaded


BASE = {
    "name": "test",
    "output": "out",
    "host": {"source": "./host"},
    "encoders": {"bert": {"source": "./bert"}},
    "glue": [{"method": "gated", "encoder": "bert"}],
    "data": {"train": {"synthetic": "train"}, "dev": {"synthetic": "dev"}},
}

# overrides of a good recipe, and what the message has to say
BAD_RECIPES = {
    "unknown key": (["hots.source=x"], ["hots", "host"]),
    "unknown host key": (["host.sorce=x"], ["host.sorce", "source"]),
    "both origins": (["host.new={family: marian}"], ["host", "source", "new"]),
    "no origin": (["host.source=null"], ["host", "source", "new"]),
    "unknown encoder": (["glue.0.encoder=brt"], ["glue[0].encoder", "brt", "bert"]),
    "unknown method": (["glue.0.method=gatd"], ["glue[0].method", "gated"]),
    "unknown option": (["glue.0.feedforward=2"], ["glue[0].feedforward", "feed_forward"]),
    "no sites": (["glue.0.sites=[]"], ["glue[0].sites"]),
    "one encoder twice": (["glue.0.encoder=[bert, bert]"], ["glue[0].encoder", "twice"]),
    "no glue": (["glue=[]"], ["glue"]),
    "bad encoder name": (["encoders.host={source: x}"], ["encoders.host", "cannot name"]),
    "no encoder source": (["encoders.bert={}"], ["encoders.bert.source", "missing"]),
    "bad builder": (["encoders.bert.builder=aut"], ["encoders.bert.builder", "auto"]),
    "bad overflow": (["encoders.bert.overflow=cut"], ["encoders.bert.overflow", "truncate"]),
    "bad layer": (["encoders.bert.layer=last"], ["encoders.bert.layer", "mix"]),
    "bad budget": (["data.batch_tokens=3"], ["data.batch_tokens", "16"]),
    "bad seed": (["seed=one"], ["seed", "one"]),
    "negative seed": (["seed=-1"], ["seed", "-1"]),
    "no number": (["seed=2e3x"], ["seed", "2e3x"]),
    "bad train key": (["train.learning_rat=1"], ["train.learning_rat", "learning_rate"]),
    "negative rate": (["train.learning_rates.glue=-1"], ["train.learning_rates.glue"]),
    "an infinite rate": (
        ["stages=[{train: all, updates: 3, learning_rate: .inf}]"],
        ["stages[0].learning_rate", "finite"],
    ),
    "no end": (["stages=[{train: all, passes: .inf}]"], ["stages[0].passes", "finite"]),
    "never and when": (
        ["train.policies={glue: {freeze: true, after: 2}}"],
        ["train.policies.glue", "never trained", "after"],
    ),
    "after its stage": (
        ["stages=[{train: all, updates: 3, policies: {glue: {after: 3}}}]"],
        ["stages[0]", "policies.glue.after", "3 updates"],
    ),
    "no such schedule": (
        ["stages=[{train: all, updates: 3, lr_scheduler_type: linaer}]"],
        ["stages[0].lr_scheduler_type", "linear"],
    ),
    "a size that is true": (["memory_cache={max_bytes: true}"], ["memory_cache.max_bytes", "20GB"]),
    "no block size": (["memory_cache={block_bytes: null}"], ["memory_cache.block_bytes", "20GB"]),
    "no patience": (["train.early_stopping={}"], ["train.early_stopping.patience"]),
    "half a corpus": (["data.dev={source: a.txt}"], ["data.dev", "target"]),
    "no equals sign": (["seed"], ["seed", "a.b=value"]),
    "list too short": (["glue.3.method=gated"], ["glue.3", "0 to 0"]),
    "bad attention": (["host.attention=fast"], ["host.attention", "eager"]),
    "unset variable": (["output=${NO_SUCH_VARIABLE}"], ["output", "NO_SUCH_VARIABLE"]),
}

# whole files
BAD_FILES = {
    "not yaml": ("a: [", "not valid YAML"),
    "a list": ("[1]", "a recipe is a mapping"),
    "empty": ("", "a recipe is a mapping"),
    "twice": ("name: a\nname: b\n", "written twice"),
    "extends nothing": ("extends: nothing.yaml\n", "extends"),
    "extends itself": ("extends: bad.yaml\n", "extends itself"),
    "holds itself": ("name: &a [*a]\n", "not valid YAML"),
    "a date that is none": ("name: 2024-99-99\n", "not valid YAML"),
}


def clean(result: Result) -> str:
    """The message of a refused command."""
    status, _, said = result
    assert status == 2, result
    progress, mark, message = ("\n" + said).rpartition("\nfusion: ")
    assert mark and "Traceback" not in said and "\nfusion: " not in progress, result
    return message


def test_help_and_recipe_mistakes_say_file_and_key_without_importing_torch(
    tmp_path: Path,
) -> None:
    (tmp_path / "good.yaml").write_text(json.dumps(BASE), encoding="utf-8")
    commands = [["--help"], ["train", "--help"], ["recipe-schema"]]
    commands += [["train", "good.yaml", *overrides] for overrides, _ in BAD_RECIPES.values()]
    commands += [["plan", "absent.yaml"], ["no-such-command"], ["train"]]
    results, loaded = run_all(commands, tmp_path)
    assert [result[0] for result in results[:3]] == [0, 0, 0]
    assert "translate" in results[0][1]
    assert "properties" in json.loads(results[2][1])
    for (name, (_, words)), result in zip(
        BAD_RECIPES.items(), results[3 : 3 + len(BAD_RECIPES)], strict=True
    ):
        message = clean(result)
        assert all(line.startswith("good.yaml: ") for line in message.splitlines()), name
        assert all(word in message for word in words), (name, message)
    absent, unknown, bare = map(clean, results[-3:])
    assert "absent.yaml: no such recipe" in absent
    assert "no-such-command" in unknown and "RECIPE" in bare
    assert "torch" not in loaded and "transformers" not in loaded
    assert [path.name for path in tmp_path.iterdir()] == ["good.yaml"]


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    commands = []
    for number, (text, _) in enumerate(BAD_FILES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "bad.yaml").write_text(text, encoding="utf-8")
        commands.append(["train", f"{number}/bad.yaml"])
    results, _ = run_all(commands, tmp_path)
    for (name, (_, words)), result in zip(BAD_FILES.items(), results, strict=True):
        message = clean(result)
        assert "bad.yaml" in message and words in message, (name, message)


def test_bad_sources_and_bad_text_are_refused_and_nothing_is_written(
    host_dirs: dict[str, Path], bert_dir: Path, tmp_path: Path
) -> None:
    good = BASE | {
        "host": {"source": str(host_dirs["marian"])},
        "encoders": {"bert": {"source": str(bert_dir)}},
        "data": {
            "train": {"source": "a.en", "target": "a.de"},
            "dev": {"source": "a.en", "target": "a.de"},
        },
    }
    texts = {"a.en": b"one\ntwo\n", "a.de": b"eins\nzwei\n", "short": b"eins\n"}
    texts |= {"latin1": b"eins\nzw\xf6lf\n", "empty": b"", "blank": b"eins\n\n"}
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.yaml").write_text(json.dumps(good), encoding="utf-8")
    shutil.copytree(host_dirs["marian"], tmp_path / "tok")
    for name, other in (("round", "good2"), ("good2", "round")):
        around = f"extends: good.yaml\nhost: {{source: 'recipe:{other}.yaml'}}\n"
        (tmp_path / f"{name}.yaml").write_text(around, encoding="utf-8")
    before = sorted(path.name for path in tmp_path.iterdir())
    bad = {
        "host.source=./no_host": ["no_host"],
        "encoders.bert.source=./no_bert": ["no_bert"],
        "encoders.bert.source=package:no_such_package/x": ["no_such_package"],
        "encoders.bert.layer=9": ["encoders.bert.layer", "9"],
        "encoders.bert.max_length=9999": ["encoders.bert.max_length", "64"],
        "glue.0.sites=[encoder.*.self_atention]": ["self_atention", "self_attention"],
        "glue.0.sites=[encoder.7.self_attention]": ["encoder.7"],
        "data.train.target=short": ["data.train", "short"],
        "data.train.target=latin1": ["data.train", "latin1", "2"],
        "data.train.target=absent": ["data.train", "absent"],
        "data.train.target=blank": ["data.train", "blank", "2"],
        "data.train={source: empty, target: empty}": ["data.train", "empty"],
        "data.dev.source=short": ["data.dev", "short"],
        "data.dev={synthetic: nothing}": ["data.dev", "nothing"],
        "generate.num_beam=3": ["generate.num_beam", "num_beams"],
        "train.lr_scheduler_type=sideways": ["train", "sideways"],
        "train.output_dir=x": ["train.output_dir"],
        "train.num_train_epochs=lots": ["train.num_train_epochs", "lots", "number"],
        "train.num_train_epochs=-1": ["train.num_train_epochs", "-1"],
        "train.max_steps=-3": ["train.max_steps", "-3"],
        "train.learning_rate=.nan": ["train.learning_rate", "nan"],
        "train.eval_strategy=sometimes": ["train", "sometimes", "'no'"],
        "train={eval_strategy: 'no', early_stopping: {patience: 2}}": [
            "train.early_stopping",
            "dev",
        ],
        "train.bf16=maybe": ["train.bf16", "maybe"],
        "train.gradient_accumulation_steps=0": ["train.gradient_accumulation_steps", "from 1"],
        "train.label_smoothing_factor=2": ["train.label_smoothing_factor", "below 1"],
        "train.metric_for_best_model=blue": ["train.metric_for_best_model", "bleu"],
        "train.report_to=nobody": ["train", "nobody"],
        "generate.num_beams=0": ["generate.num_beams", "from 1"],
        "generate.temperature=hot": ["generate.temperature", "hot"],
        "generate.temperature=0.7": ["generate", "do_sample"],
        "generate.num_return_sequences=2": ["generate.num_return_sequences"],
        "generate.max_length=40": ["generate.max_length", "use max_new_tokens"],
        "glue.0.feed_forward=wide": ["glue", "feed_forward", "wide", "number"],
        "host={new: {family: marian, d_model: 33}, tokenizer: ./tok}": ["host", "divisible"],
        "host={new: {family: marian, dropout: 1.5}, tokenizer: ./tok}": ["host.new.dropout"],
        "host={new: {family: marian, encoder_layers: -1}, tokenizer: ./tok}": ["encoder_layers"],
        "host.source=recipe:round.yaml": ["host.source", "round.yaml -> good2.yaml -> round.yaml"],
        "output=a.en": ["a.en", "Not a directory"],
        "output=/proc/nobody": ["output", "/proc/nobody"],
    }
    commands = [["train", "good.yaml", override] for override in bad]
    results, _ = run_all(commands, tmp_path)
    for (override, words), result in zip(bad.items(), results, strict=True):
        message = clean(result)
        assert all(word in message for word in words), (override, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_recipe: RecipeMaker) -> Path:
    """A composed model, saved."""
    composed = compose(make_recipe())
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(composed.model, directory, composed.processor)
    return directory


def test_an_interruption_is_no_success(model: Path) -> None:
    command = [sys.executable, "-m", "fusion", "translate", str(model), "--buffer-size", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def heed() -> None:
        """A shell starts what runs in the background with interruptions ignored."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, text=True, preexec_fn=heed, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        process.stdout.readline()  # it has started, and waits for the next line
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("fusion: interrupted\n") and "Traceback" not in said


def test_models_are_listed_inspected_and_refused(model: Path, tmp_path: Path) -> None:
    name = "host.model.encoder.layers.0.fc1.weight"
    (tmp_path / "one").write_text("a\n")
    (tmp_path / "two").write_text("a\nb\n")
    files = ["--source", str(tmp_path / "one"), "--reference", str(tmp_path / "two")]
    commands = [
        ["list"],
        ["inspect", str(model)],
        ["inspect", str(model), "--json"],
        ["inspect", str(model), "--tensor", name],
        ["verify", str(model)],
        ["inspect", str(model), "--tensor", name.replace("fc1", "fc11")],
        ["verify", str(tmp_path)],
        ["translate", str(tmp_path / "nowhere")],
        ["translate", str(model), str(tmp_path / "no_text")],
        ["evaluate", str(model), *files],
        ["evaluate", str(model), *files[:2], "--reference", files[1], "--compare", files[3]],
    ]
    results, _ = run_all(commands, tmp_path)
    assert [result[0] for result in results[:5]] == [0] * 5, results
    assert all(word in results[0][1] for word in ("marian", "gated", "bert-fused", "auto"))
    assert "initialised" in results[1][1]
    entries = {entry["name"] for entry in json.loads(results[2][1])["entries"]}
    assert name in entries
    assert f"name: {name}" in results[3][1] and "origin: loaded" in results[3][1]
    assert "are what the ledger says" in results[4][1]
    assert f'nearest: "{name}"' in clean(results[5])
    assert str(tmp_path) in clean(results[6])
    assert "nowhere" in clean(results[7])
    assert "no_text" in clean(results[8])
    assert "has 1 lines" in clean(results[9])
    assert f"{files[3]} has 2" in clean(results[10])
