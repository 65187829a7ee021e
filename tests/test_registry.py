"""One name, one thing: built in, decorated, or from a plugin that is really installed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fusion.errors import RegistryError
from fusion.registry import ALL, GLUE, Listing, Registry, annotated_fields, keyword_options


def fresh() -> Registry[Any]:
    """A registry with one built-in name and no plugins."""
    return Registry("hats", {"top": "collections:OrderedDict"})


def install(folder: Path, name: str, modules: dict[str, str], entry_points: str) -> None:
    """A distribution as pip would lay it out: modules beside a .dist-info directory."""
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(textwrap.dedent(entry_points), encoding="utf-8")


def python(folder: Path, program: str) -> list[str]:
    """Output lines of a program that runs where the distributions of a folder are installed."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


WORKING = """
from fusion.glue.base import Glue

class Mine(Glue):
    def __init__(self, place, *, colour="red", size=1):
        pass
"""


def test_a_built_in_is_imported_on_first_use() -> None:
    from collections import OrderedDict

    hats = fresh()
    assert hats.names() == ["top"]
    assert hats.target("top") == "collections:OrderedDict"
    assert hats.get("top") is OrderedDict


def test_the_decorator_gives_a_class_a_name_and_leaves_it_as_it_is() -> None:
    hats = fresh()

    @hats.register("bowler")
    class Bowler:
        pass

    assert hats.get("bowler") is Bowler
    assert hats.names() == ["bowler", "top"]
    assert hats.target("bowler") == f"{__name__}:{Bowler.__qualname__}"
    assert hats.listing() == [
        Listing("hats", "top", "built in"),
        Listing("hats", "bowler", f"{__name__}:{Bowler.__qualname__}"),
    ]


def test_a_second_registration_of_a_name_is_an_error() -> None:
    hats = fresh()

    def first() -> None: ...

    def second() -> None: ...

    hats.register("bowler")(first)
    assert hats.register("bowler")(first) is first, "the same thing again, as on a reload"
    with pytest.raises(RegistryError) as caught:
        hats.register("bowler")(second)
    taken = f"{__name__}:{first.__qualname__}"
    assert str(caught.value) == f'hats: "bowler" is already registered by {taken}'
    assert hats.get("bowler") is first


def test_a_built_in_name_cannot_be_registered_by_another() -> None:
    hats = fresh()
    with pytest.raises(RegistryError) as caught:
        hats.register("top")(print)
    assert str(caught.value) == 'hats: "top" is already registered by collections:OrderedDict'


def test_an_unknown_name_names_the_nearest_or_all() -> None:
    hats = fresh()
    with pytest.raises(RegistryError) as caught:
        hats.get("topp")
    assert str(caught.value) == 'no hat "topp"; nearest: "top"'
    with pytest.raises(RegistryError) as caught:
        GLUE.get("qqq")
    assert str(caught.value) == f'no glue "qqq"; known: {", ".join(GLUE.names())}'


def test_every_built_in_name_leads_to_something() -> None:
    for registry in ALL:
        for name in registry.builtin:
            assert callable(registry.get(name)) or registry.kind == "hosts"


def test_names_and_targets_are_known_without_torch(tmp_path: Path) -> None:
    program = """
        import sys
        from fusion.registry import ALL
        for registry in ALL:
            for name in registry.names():
                assert registry.target(name)
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    assert python(tmp_path, program) == []


def test_keyword_options_are_read_from_the_source_and_not_by_import(tmp_path: Path) -> None:
    modules = {"mine": 'raise SystemExit("imported")\n' + WORKING}
    install(tmp_path, "a-plugin", modules, "[fusion.glue]\nmine = mine:Mine\n")
    program = """
        from fusion.registry import GLUE, keyword_options
        print(GLUE.names(), keyword_options(GLUE.target("mine")))
    """
    assert python(tmp_path, program) == [f"{sorted([*GLUE.names(), 'mine'])} ['colour', 'size']"]


def test_options_that_cannot_be_read_are_unknown_and_no_error(tmp_path: Path) -> None:
    assert keyword_options("no_such_module:Thing") is None
    assert keyword_options("no.such.module:Thing") is None
    assert keyword_options("sys:exit") is None
    assert keyword_options("fusion.registry:Nothing") is None
    modules = {"bad": "def ("}
    package = tmp_path / "broken"
    package.mkdir()
    (package / "__init__.py").write_text("1 / 0", encoding="utf-8")
    install(tmp_path, "a-plugin", modules, "[fusion.glue]\nx = broken.sub:X\ny = bad:Y\n")
    program = """
        from fusion.registry import keyword_options
        print(keyword_options("broken.sub:X"), keyword_options("bad:Y"))
    """
    assert python(tmp_path, program) == ["None None"]


def test_fields_of_a_dataclass_are_read_from_its_source() -> None:
    assert annotated_fields("fusion.registry", "Listing") == ["kind", "name", "origin", "error"]
    assert annotated_fields("no_such_package.module", "Listing") == []


def test_a_working_plugin_is_found_listed_and_loaded(tmp_path: Path) -> None:
    install(tmp_path, "a-plugin", {"mine": WORKING}, "[fusion.glue]\nmine = mine:Mine\n")
    program = """
        from fusion.registry import GLUE
        print(GLUE.get("mine").__name__)
        print([row for row in GLUE.listing() if row.name == "mine"][0])
    """
    assert python(tmp_path, program) == [
        "Mine",
        "Listing(kind='glue', name='mine', origin='mine:Mine (a-plugin 1.2)', error=None)",
    ]


def test_a_recipe_knows_the_options_of_a_plugin_s_glue(tmp_path: Path) -> None:
    install(tmp_path, "a-plugin", {"mine": WORKING}, "[fusion.glue]\nmine = mine:Mine\n")
    recipe = """
        name: x
        output: out
        host: {source: org/host}
        encoders: {bert: {source: org/bert}}
        glue: [{method: mine, encoder: bert, color: blue}]
        data: {train: {synthetic: train}, dev: {synthetic: dev}}
    """
    (tmp_path / "r.yaml").write_text(textwrap.dedent(recipe), encoding="utf-8")
    program = f"""
        import fusion
        from fusion.recipe import recipe_schema
        print("colour" in recipe_schema()["$defs"]["GlueSpec"]["properties"])
        try:
            fusion.load_recipe({str(tmp_path / "r.yaml")!r})
        except fusion.FusionError as error:
            print(error)
    """
    assert python(tmp_path, program) == [
        "True",
        f'{tmp_path / "r.yaml"}: glue[0].color: mine has no option "color"; nearest: "colour"',
    ]


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("", "AttributeError: module 'mine' has no attribute 'Mine'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_fails_to_import_is_reported_by_name_and_cause_and_harms_no_other(
    module: str, cause: str, tmp_path: Path
) -> None:
    install(tmp_path, "a-plugin", {"mine": module}, "[fusion.encoders]\nmine = mine:Mine\n")
    install(tmp_path, "b-plugin", {"fine": WORKING}, "[fusion.encoders]\nfine = fine:Mine\n")
    program = """
        from fusion.errors import RegistryError
        from fusion.registry import ENCODERS
        try:
            ENCODERS.get("mine")
        except RegistryError as error:
            print(error)
        print({row.name: row.error for row in ENCODERS.listing()}["mine"])
        print(ENCODERS.get("fine").__name__)
    """
    message = f'encoder "mine": plugin mine:Mine (a-plugin 1.2) failed to import: {cause}'
    assert python(tmp_path, program) == [message, message, "Mine"]


def test_a_name_that_a_plugin_takes_of_fusion_stops_who_uses_it_and_no_other(
    tmp_path: Path,
) -> None:
    install(tmp_path, "a-plugin", {"mine": WORKING}, "[fusion.glue]\ngated = mine:Mine\n")
    program = """
        from fusion.errors import RegistryError
        from fusion.registry import GLUE
        for use in (GLUE.get, GLUE.target):
            try:
                use("gated")
            except RegistryError as error:
                print(error)
        print([row.error for row in GLUE.listing() if row.name == "gated"])
        print(GLUE.names(), GLUE.get("stacked").__name__)
    """
    said = 'glue: the name "gated" of plugin mine:Mine (a-plugin 1.2) is taken by fusion'
    rows = [None, said]
    assert python(tmp_path, program) == [said, said, str(rows), f"{GLUE.names()} Stacked"]


def test_two_plugins_of_one_name_are_an_error_and_one_found_twice_is_not(tmp_path: Path) -> None:
    install(tmp_path, "a-plugin", {"mine": WORKING}, "[fusion.glue]\nmine = mine:Mine\n")
    again = tmp_path / "again"
    again.mkdir()
    install(again, "a-plugin", {"mine": WORKING}, "[fusion.glue]\nmine = mine:Mine\n")
    program = f"""
        import sys
        from fusion.errors import RegistryError
        from fusion.registry import GLUE
        sys.path.append({str(again)!r})
        print(GLUE.names())
        sys.path.append({str(tmp_path / "other")!r})
        try:
            GLUE.get("mine")
        except RegistryError as error:
            print(error)
    """
    other = tmp_path / "other"
    other.mkdir()
    install(other, "b-plugin", {"yours": WORKING}, "[fusion.glue]\nmine = yours:Mine\n")
    assert python(tmp_path, program) == [
        str(sorted([*GLUE.names(), "mine"])),
        'glue: the name "mine" of plugin yours:Mine (b-plugin 1.2) is taken by mine:Mine',
    ]


def test_a_decorated_name_that_an_installed_plugin_has_is_an_error(tmp_path: Path) -> None:
    decorated = """
        from fusion import register_glue
        from fusion.glue.base import Glue

        @register_glue("mine")
        class Mine(Glue):
            pass
    """
    install(tmp_path, "a-plugin", {"mine": decorated}, "[fusion.glue]\nmine = mine:Mine\n")
    program = """
        from fusion.errors import RegistryError
        from fusion.registry import GLUE, register_glue
        print(GLUE.get("mine").__name__)
        class Other:
            pass
        try:
            register_glue("mine")(Other)
        except RegistryError as error:
            print(error)
    """
    assert python(tmp_path, program) == [
        "Mine",
        'glue: "mine" is already registered by mine:Mine',
    ]


@pytest.mark.parametrize(
    ("group", "thing", "said"),
    [
        ("glue", "3", "is 3, and no Glue"),
        ("glue", "dict", "is <class 'dict'>, and no Glue"),
        ("hosts", "dict", "is <class 'dict'>, and no Family"),
        ("encoders", "3", "is 3, and cannot be called"),
    ],
)
def test_a_plugin_that_brings_something_else_is_an_error_and_in_the_list(
    group: str, thing: str, said: str, tmp_path: Path
) -> None:
    install(tmp_path, "a-plugin", {"mine": f"it = {thing}"}, f"[fusion.{group}]\nmine = mine:it\n")
    program = f"""
        from fusion.errors import RegistryError
        from fusion.registry import {group.upper()} as registry
        try:
            registry.get("mine")
        except RegistryError as error:
            print(error)
        print([row.error for row in registry.listing() if row.name == "mine"][0])
    """
    message = f'{group.removesuffix("s")} "mine": plugin mine:it (a-plugin 1.2) {said}'
    assert python(tmp_path, program) == [message, message]
