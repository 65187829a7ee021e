"""A recipe says something that can be built, or is one message: file, key, found, nearest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fusion.recipe
from fusion.errors import RecipeError
from fusion.recipe import Recipe, load_recipe, recipe_schema, training_argument_names

RECIPES = Path(__file__).parent.parent / "recipes"
SHIPPED = sorted(RECIPES.rglob("*.yaml"))
GOOD: dict[str, Any] = {
    "name": "small",
    "output": "out",
    "host": {"source": "./host", "attention": "eager"},
    "encoders": {"bert": {"source": "package:some_package/model"}},
    "glue": [{"method": "bert-fused", "encoder": "bert", "drop_net": 0.5}],
    "data": {
        "train": {"source": "train.en", "target": "train.de"},
        "dev": {"file": "dev.tsv", "source": "en", "target": "de"},
        "tests": {"flickr": {"synthetic": "test"}},
    },
    "train": {"max_steps": 10, "learning_rates": {"glue": 1e-3}},
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def changed(**places: Any) -> dict[str, Any]:
    """GOOD with the values at some places replaced; `__` goes down, DROP removes."""
    content: dict[str, Any] = json.loads(json.dumps(GOOD))
    for place, value in places.items():
        node: Any = content
        *above, last = place.split("__")
        for key in above:
            node = node[int(key)] if key.isdecimal() else node[key]
        if value is DROP:
            del node[last]
        else:
            node[int(last) if last.isdecimal() else last] = value
    return content


DROP = object()


def test_a_valid_recipe_loads_with_its_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", GOOD))
    assert recipe.name == "small"
    assert recipe.seed == 1
    assert recipe.encoders["bert"].freeze is True
    assert recipe.host.freeze is False
    assert recipe.glue[0].options == {"drop_net": 0.5}
    assert recipe.glue[0].key == "bert_fused"
    assert recipe.glue[0].sites is None  # the method's own
    assert recipe.train.arguments == {"max_steps": 10}
    assert recipe.train.learning_rates.glue == 1e-3


@pytest.mark.parametrize("path", SHIPPED, ids=[str(p.relative_to(RECIPES)) for p in SHIPPED])
def test_every_shipped_recipe_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_DATA", "corpora")
    assert load_recipe(path).name


def test_a_resolved_recipe_is_itself_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "a" / "r.yaml", GOOD))
    echo = load_recipe(write(tmp_path / "b" / "r.yaml", recipe.model_dump(mode="json")))
    assert echo.model_dump() == recipe.model_dump()


def test_the_digest_follows_the_content_and_not_the_output_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", GOOD)
    digest = load_recipe(path).digest()
    assert load_recipe(path, ["output=elsewhere"]).digest() == digest
    assert load_recipe(path, ["seed=2"]).digest() != digest


def test_paths_are_relative_to_the_recipe_and_columns_hub_ids_and_packages_are_not_paths(
    tmp_path: Path,
) -> None:
    content = changed(
        host={"source": "recipe:../plain.yaml", "tokenizer": "org/tokenizer"},
        encoders__bert__source="models/bert",
    )
    (tmp_path / "recipes" / "models" / "bert").mkdir(parents=True)
    here = tmp_path / "recipes"
    recipe = load_recipe(write(here / "r.yaml", content))
    assert recipe.output == str(here / "out")
    assert recipe.host.source == f"recipe:{tmp_path / 'plain.yaml'}"
    assert recipe.host.tokenizer == "org/tokenizer"
    assert recipe.encoders["bert"].source == str(here / "models" / "bert")
    train, dev = recipe.data.train, recipe.data.dev
    assert not isinstance(train, list)
    assert (train.source, train.target) == (str(here / "train.en"), str(here / "train.de"))
    assert (dev.file, dev.source, dev.target) == (str(here / "dev.tsv"), "en", "de")


def test_a_list_of_corpora_has_its_paths_resolved_one_by_one(tmp_path: Path) -> None:
    corpora = [
        {"source": "a.en", "target": "a.de"},
        {"hub": "org/set", "source": "translation.en", "target": "translation.de"},
    ]
    recipe = load_recipe(write(tmp_path / "r.yaml", changed(data__train=corpora)))
    assert isinstance(recipe.data.train, list)
    assert [c.source for c in recipe.data.train] == [str(tmp_path / "a.en"), "translation.en"]


def test_the_home_directory_is_expanded_wherever_a_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    content = changed(
        output="~/out",
        host={"source": "recipe:~/plain.yaml"},
        encoders__bert__source="~/bert",
        data__train={"source": "~/a", "target": "~/b"},
    )
    recipe = load_recipe(write(tmp_path / "r.yaml", content))
    home = tmp_path / "home"
    assert recipe.output == str(home / "out")
    assert recipe.host.source == f"recipe:{home / 'plain.yaml'}"
    assert recipe.encoders["bert"].source == str(home / "bert")
    assert isinstance(recipe.data.train, fusion.recipe.CorpusSpec)
    assert recipe.data.train.source == str(home / "a")


def test_extends_merges_mappings_and_replaces_lists_and_each_file_keeps_its_own_paths(
    tmp_path: Path,
) -> None:
    write(tmp_path / "base" / "base.yaml", GOOD)
    child = {
        "extends": "../base/base.yaml",
        "output": "child",
        "glue": [{"method": "gated", "encoder": "bert"}],
        "data": {"tests": {"mine": {"source": "t.en", "target": "t.de"}}},
        "train": {"warmup_steps": 5},
    }
    recipe = load_recipe(write(tmp_path / "child" / "child.yaml", child))
    assert recipe.host.source == str(tmp_path / "base" / "host")
    assert recipe.output == str(tmp_path / "child" / "child")
    assert [glue.method for glue in recipe.glue] == ["gated"]
    assert recipe.data.tests["mine"].source == str(tmp_path / "child" / "t.en")
    assert recipe.data.tests["flickr"].synthetic == "test"
    assert recipe.train.arguments == {"max_steps": 10, "warmup_steps": 5}


def test_a_child_may_change_a_column_of_its_base_without_it_becoming_a_path(
    tmp_path: Path,
) -> None:
    write(tmp_path / "base.yaml", GOOD)
    child = {"extends": "base.yaml", "data": {"dev": {"source": "english"}}}
    recipe = load_recipe(write(tmp_path / "child.yaml", child))
    assert recipe.data.dev.source == "english"
    assert recipe.data.dev.file == str(tmp_path / "dev.tsv")


def test_extends_works_over_several_files(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", GOOD)
    write(tmp_path / "b.yaml", {"extends": "a.yaml", "seed": 2, "name": "b"})
    recipe = load_recipe(write(tmp_path / "c.yaml", {"extends": "b.yaml", "name": "c"}))
    assert (recipe.name, recipe.seed) == ("c", 2)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("seed=7", ["seed"], 7),
        ("train.learning_rate=5e-4", ["train", "learning_rate"], 5e-4),
        ("train.learning_rates.host=1e-5", ["train", "learning_rates", "host"], 1e-5),
        ("glue.0.drop_net=0", ["glue", 0, "drop_net"], 0),
        ("glue.0.sites=[decoder.*.cross_attention]", ["glue", 0, "sites"], None),
        ("generate.num_beams=4", ["generate", "num_beams"], 4),
        ("data.dev={synthetic: dev}", ["data", "dev", "synthetic"], "dev"),
        ("host.attention=null", ["host", "attention"], None),
        ("name=a=b", ["name"], "a=b"),
    ],
)
def test_an_override_changes_one_place(
    override: str, place: list[Any], value: Any, tmp_path: Path
) -> None:
    found: Any = load_recipe(write(tmp_path / "r.yaml", GOOD), [override]).model_dump()
    for key in place:
        found = found[key]
    expected = ["decoder.*.cross_attention"] if place[-1] == "sites" else value
    assert found == expected
    assert type(found) is type(expected)


def test_a_path_in_an_override_is_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", GOOD), ["host.source=./other"])
    assert recipe.host.source == str(tmp_path / "other")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", 'override "seed": write it as a.b=value'),
        ("=3", 'override "=3": write it as a.b=value'),
        ("seed=[", 'override "seed=[": the value is not valid YAML'),
        ("glue.1.method=gated", "override glue.1: the list goes from 0 to 0"),
        ("glue.x.method=gated", "override glue.x: the list goes from 0 to 0"),
        ("glue.².method=gated", "override glue.²: the list goes from 0 to 0"),
        ("name.first=x", "override name.first: name is a plain value: 'small'"),
        ("sed=3", 'sed: unknown key "sed"; nearest: "seed"'),
        ("seed=${FUSION_NO}", "seed: environment variable FUSION_NO is not set; "),
    ],
)
def test_a_bad_override_is_one_message(override: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", GOOD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_environment_variables_are_replaced_and_may_have_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_DATA", "corpora")
    monkeypatch.delenv("FUSION_NAME", raising=False)
    content = changed(
        name="${FUSION_NAME:-plain}-${FUSION_DATA}", data__train__source="${FUSION_DATA}/a.en"
    )
    recipe = load_recipe(write(tmp_path / "r.yaml", content))
    assert recipe.name == "plain-corpora"
    assert isinstance(recipe.data.train, fusion.recipe.CorpusSpec)
    assert recipe.data.train.source == str(tmp_path / "corpora" / "a.en")


def test_numbers_in_scientific_notation_need_no_dot(tmp_path: Path) -> None:
    text = yaml.safe_dump(GOOD).replace(
        "max_steps: 10", "learning_rate: 5e-4\n  adam_epsilon: 1E-9"
    )
    recipe = load_recipe(write(tmp_path / "r.yaml", text))
    assert recipe.train.arguments == {"learning_rate": 5e-4, "adam_epsilon": 1e-9}


NEW_HOST = {"new": {"family": "marian"}, "tokenizer": {"vocab_size": 100}}
BAD: list[tuple[str, Any, str]] = [
    ("unknown-key", changed(sed=1), 'sed: unknown key "sed"; nearest: "seed"'),
    (
        "unknown-host-key",
        changed(host={"sorce": "x"}),
        'host.sorce: unknown key "sorce"; nearest: "source"',
    ),
    (
        "unknown-encoder-key",
        changed(encoders__bert__freze=True),
        'encoders.bert.freze: unknown key "freze"; nearest: "freeze"',
    ),
    (
        "unknown-corpus-key",
        changed(data__dev={"file": "x", "sorce": "a", "target": "b"}),
        'data.dev.sorce: unknown key "sorce"; nearest: "source"',
    ),
    (
        "unknown-key-in-a-list-of-corpora",
        changed(data__train=[{"source": "a", "target": "b", "splt": "x"}]),
        'data.train[0].splt: unknown key "splt"; nearest: "split"',
    ),
    (
        "unknown-filter",
        changed(data__filters={"max_len": 3}),
        'data.filters.max_len: unknown key "max_len"; nearest: "max_length"',
    ),
    (
        "unknown-tokenizer-key",
        changed(host=NEW_HOST | {"tokenizer": {"vocab": 100}}),
        'host.tokenizer.vocab: unknown key "vocab"; nearest: "vocab_size"',
    ),
    (
        "unknown-training-argument",
        changed(train={"max_step": 3}),
        'train.max_step: unknown key "max_step"; nearest: "max_steps"',
    ),
    (
        "unknown-learning-rate",
        changed(train__learning_rates={"encoder": 0.1}),
        'train.learning_rates.encoder: unknown key "encoder"; nearest: "encoders"',
    ),
    (
        "unknown-glue-option",
        changed(glue__0__drop_nte=0.1),
        'glue[0].drop_nte: bert-fused has no option "drop_nte"; nearest: "drop_net"',
    ),
    (
        "unknown-method",
        changed(glue__0__method="bert-fusd"),
        'glue[0].method: no glue "bert-fusd"; nearest: "bert-fused"',
    ),
    (
        "method-like-no-other",
        changed(glue__0__method="qqq"),
        'glue[0].method: no glue "qqq"; known: bert-fused, ',
    ),
    (
        "unknown-encoder-in-glue",
        changed(glue__0__encoder="brt"),
        'glue[0].encoder: no encoder "brt"; this recipe has: bert',
    ),
    (
        "unknown-builder",
        changed(encoders__bert__builder="autto"),
        'encoders.bert.builder: no encoder "autto"; nearest: "auto"',
    ),
    (
        "unknown-family",
        changed(host=NEW_HOST | {"new": {"family": "marain"}}),
        'host.new.family: no host "marain"; nearest: "marian"',
    ),
    (
        "unknown-init",
        changed(host__init="xavir"),
        'host.init: no init "xavir"; nearest: "xavier"',
    ),
    (
        "unknown-attention",
        changed(host__attention="flash"),
        "host.attention: found 'flash'; should be 'eager', 'sdpa', 'flash_attention_2' or "
        "'flex_attention'",
    ),
    (
        "unknown-overflow",
        changed(encoders__bert__overflow="cut"),
        "encoders.bert.overflow: found 'cut'; should be 'error', 'truncate' or 'windows'",
    ),
    (
        "host-of-both-origins",
        changed(host=NEW_HOST | {"source": "x"}),
        "host: say either source (a checkpoint) or new (a config), one of the two",
    ),
    (
        "host-of-no-origin",
        changed(host={}),
        "host: say either source (a checkpoint) or new (a config), one of the two",
    ),
    (
        "family-that-is-no-name",
        changed(host=NEW_HOST | {"new": {"family": 3}}),
        "host: new needs family, one of: bart, ",
    ),
    (
        "new-host-without-tokenizer",
        changed(host={"new": {"family": "marian"}}),
        "host: a new host needs tokenizer: {vocab_size: ...} or a directory",
    ),
    (
        "tokenizer-of-a-wrong-type",
        changed(host__tokenizer=3),
        "host.tokenizer: found 3; should be a valid string or a mapping",
    ),
    ("no-name", changed(name=DROP), "name: is missing"),
    ("no-output", changed(output=DROP), "output: is missing"),
    ("no-dev", changed(data__dev=DROP), "data.dev: is missing"),
    ("no-encoder-source", changed(encoders__bert={}), "encoders.bert.source: is missing"),
    ("no-method", changed(glue__0__method=DROP), "glue[0].method: is missing"),
    ("name-is-a-number", changed(name=3), "name: found 3; should be a valid string"),
    (
        "glue-is-no-list",
        changed(glue={"method": "gated", "encoder": "bert"}),
        "glue: found a mapping; should be a valid list",
    ),
    (
        "no-sites",
        changed(glue__0__sites=[]),
        "glue[0].sites: found []; List should have at least 1 item after validation, not 0",
    ),
    (
        "one-site-that-is-no-list",
        changed(glue__0__sites="encoder.*"),
        "glue[0].sites: found 'encoder.*'; should be a valid list",
    ),
    (
        "layer-that-is-no-number",
        changed(encoders__bert__layer="last"),
        "encoders.bert.layer: found 'last'; should be a valid integer, unable to parse string as "
        "an integer or 'mix'",
    ),
    (
        "too-small-a-budget",
        changed(data__batch_tokens=0),
        "data.batch_tokens: found 0; should be greater than or equal to 16",
    ),
    (
        "target-missing",
        changed(data__train={"source": "a"}),
        "data.train: say source and target (two files, or two columns of file or hub)",
    ),
    (
        "file-and-hub",
        changed(data__dev={"file": "a", "hub": "b", "source": "s", "target": "t"}),
        "data.dev: say file or hub, not both",
    ),
    (
        "synthetic-and-files",
        changed(data__tests__flickr={"synthetic": "test", "source": "a"}),
        "data.tests.flickr: synthetic takes no source, target, file or hub",
    ),
    (
        "encoder-with-a-reserved-name",
        changed(encoders={"decoder": {"source": "x"}}, glue__0__encoder="decoder"),
        'encoders.decoder: "decoder" cannot name an encoder; for example: bert',
    ),
    (
        "encoder-with-a-dotted-name",
        changed(encoders={"a.b": {"source": "x"}}, glue__0__encoder="a.b"),
        'encoders.a.b: "a.b" cannot name an encoder; for example: bert',
    ),
    (
        "encoder-from-a-recipe",
        changed(encoders__bert__source="recipe:x.yaml"),
        "encoders.bert.source: recipe: is for hosts only",
    ),
    (
        "encoder-that-no-glue-reads",
        changed(encoders__more={"source": "x"}),
        "encoders.more: no glue reads it; remove it or add glue",
    ),
    (
        "encoders-without-glue",
        changed(glue=[]),
        "glue: is missing: the encoders' memory would go nowhere",
    ),
    (
        "two-glues-of-one-name",
        changed(glue=[{"method": "gated", "encoder": "bert"}] * 2),
        'glue[1]: its tensors would be named "gated" as those of glue[0]; give it a name:',
    ),
    (
        "glue-name-with-a-dot",
        changed(glue__0__name="a.b"),
        'glue[0].name: "a.b" is not a plain name such as bert_fused',
    ),
    ("extends-a-list", changed(extends=["a"]), "extends: the path of a recipe; found ['a']"),
    (
        "extends-nothing",
        changed(extends="bad.yml"),
        'extends: no recipe "bad.yml"; nearest: "bad.yaml"',
    ),
    ("extends-itself", changed(extends="bad.yaml"), "extends itself: bad.yaml"),
    (
        "environment",
        changed(data__train__source="${FUSION_NO}/a"),
        "data.train.source: environment variable FUSION_NO is not set; export FUSION_NO=... or "
        "write ${FUSION_NO:-default}",
    ),
    ("a-list", ["a"], "a recipe is a mapping of keys; found list"),
    ("empty", "", "a recipe is a mapping of keys; found NoneType"),
    ("no-yaml", "a: [", "not valid YAML: while parsing a flow node"),
    ("key-written-twice", "a: 1\nb: 2\na: 3\n", 'not valid YAML: the key "a" is written twice'),
]


@pytest.mark.parametrize(("content", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_mistake_names_the_file_the_key_what_was_found_and_what_would_work(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSION_NO", raising=False)
    path = write(tmp_path / "bad.yaml", content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    expected = f"{path}: {message}"
    assert str(caught.value).startswith(expected)
    assert str(caught.value).count("\n") == expected.count("\n"), "one mistake, one message"


def test_several_mistakes_are_reported_together(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", changed(glue__0__method="gatd", train={"max_step": 3}))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).splitlines() == [
        f'{path}: glue[0].method: no glue "gatd"; nearest: "gated"',
        f'{path}: train.max_step: unknown key "max_step"; nearest: "max_steps"',
    ]


def test_a_missing_recipe_names_the_nearest_file(tmp_path: Path) -> None:
    write(tmp_path / "host.yaml", GOOD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "hots.yaml")
    assert str(caught.value) == f'{tmp_path / "hots.yaml"}: no such recipe; nearest: "host.yaml"'


def test_a_recipe_that_is_not_utf_8_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(RecipeError, match=r"r\.yaml: cannot be read: 'utf-8' codec"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"cannot be read: .*directory"):
        load_recipe(tmp_path)


def test_good_and_bad_recipes_are_read_without_torch_and_transformers(tmp_path: Path) -> None:
    good = write(tmp_path / "good.yaml", GOOD)
    bad = write(tmp_path / "bad.yaml", changed(glue__0__drop_nte=1, train={"max_step": 1}))
    program = (
        "import sys, fusion\n"
        "from fusion.recipe import recipe_schema\n"
        f"fusion.load_recipe({str(good)!r})\n"
        "try:\n"
        f"    fusion.load_recipe({str(bad)!r})\n"
        "except fusion.FusionError as error:\n"
        "    print(error)\n"
        "recipe_schema()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        f'{bad}: glue[0].drop_nte: bert-fused has no option "drop_nte"; nearest: "drop_net"',
        f'{bad}: train.max_step: unknown key "max_step"; nearest: "max_steps"',
    ]


def test_the_training_arguments_are_those_of_transformers() -> None:
    import dataclasses

    from transformers import Seq2SeqTrainingArguments

    real = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init}
    assert real <= set(training_argument_names())


def test_the_schema_lists_glue_options_and_training_arguments() -> None:
    schema = recipe_schema()
    assert json.loads(json.dumps(schema)) == schema
    glue, train = schema["$defs"]["GlueSpec"], schema["$defs"]["TrainSpec"]
    assert {"method", "encoder", "sites", "start", "drop_net"} <= set(glue["properties"])
    assert {"bert-fused", "gated"} <= set(glue["properties"]["method"]["enum"])
    assert {"learning_rates", "learning_rate", "predict_with_generate"} <= set(train["properties"])
    assert glue["additionalProperties"] is train["additionalProperties"] is False
    assert set(schema["required"]) == {"name", "output", "host", "data"}


def test_the_schema_is_closed_and_all_its_references_resolve() -> None:
    schema = recipe_schema()
    names = {"string", "integer", "number", "boolean", "object", "array", "null"}

    def walk(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                walk(item)
        if not isinstance(node, dict):
            return
        if isinstance(node.get("$ref"), str):
            assert node["$ref"].removeprefix("#/$defs/") in schema["$defs"]
        if isinstance(node.get("type"), str):
            assert node["type"] in names
        if isinstance(node.get("required"), list):
            assert set(node["required"]) <= set(node["properties"])
        for key, item in node.items():
            if key not in ("default", "enum", "const", "examples"):
                walk(item)

    walk(schema)
    assert schema["type"] == "object"
    assert set(schema["properties"]) == set(Recipe.model_fields)
