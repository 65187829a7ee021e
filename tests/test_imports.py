"""Imports point one way, and what the command line needs first needs no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

import fusion

ROOT = Path(fusion.__file__).parent

# A unit is a module or a package of fusion/; it may import units of a lower level only.
LEVELS: dict[str, int] = {
    "denormals": 0,
    "errors": 0,
    "synthetic": 0,
    "registry": 1,
    "writing": 1,
    "recipe": 2,
    "keymap": 2,
    "ledger": 2,
    "memory": 2,
    "inits": 3,
    "policies": 3,
    "subwords": 3,
    "vocabulary": 3,
    "positions": 3,
    "tensors": 3,
    "checkpoints": 3,
    "operations": 4,
    "planning": 5,
    "backwards": 5,
    "warmstart": 6,
    "hosts": 7,
    "encoders": 7,
    "glue": 7,
    "proposals": 8,
    "placement": 8,
    "processor": 8,
    "beams": 8,
    "computed": 8,
    "configuration": 8,
    "model": 9,
    "causal": 10,
    "blank": 11,
    "timetable": 10,
    "arguments": 10,
    "callbacks": 11,
    "optimizer": 11,
    "saved": 12,
    "renames": 12,
    "verify": 13,
    "parts": 13,
    "check": 13,
    "export": 13,
    "generation": 14,
    "composition": 15,
    "lock": 16,
    "suggest": 16,
    "testing": 16,
    "data": 16,
    "translate": 16,
    "evaluate": 16,
    "memory_cache": 17,
    "estimates": 18,
    "trainer": 18,
    "outcome": 19,
    "train": 20,
    "display": 21,
    "cli": 22,
    "__main__": 23,
    "__init__": 24,
}

USED_IF_THERE = {"bitsandbytes"}  # 8-bit optimizers

# The other way round, and why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("model", "saved"): "from_pretrained and save_pretrained are methods of the model",
}

LIGHT = ["__init__", "errors", "registry", "recipe", "keymap", "ledger"]
HEAVY = {"torch", "transformers", "datasets", "accelerate", "safetensors", "sentencepiece"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def home_of(module: str) -> Path:
    """The file of a module, or of a package."""
    place = ROOT.parent.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def unit(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path, nodes: Iterator[ast.AST]) -> set[str]:
    """Dotted names that a module imports; relative imports are resolved."""
    package = ("fusion", *path.relative_to(ROOT).parent.parts)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def at_import_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not in functions, not for type checkers only."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def units_imported_by(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for name in imported(path, ast.walk(tree)):
        top, _, rest = name.partition(".")
        if top == "fusion" and rest not in ("", "__version__"):
            first = rest.partition(".")[0]
            found.add(first if first in LEVELS or _is_unit(first) else "__init__")
    return found - {unit(path)}


def _is_unit(name: str) -> bool:
    return (ROOT / f"{name}.py").is_file() or (ROOT / name / "__init__.py").is_file()


def test_every_unit_has_a_level() -> None:
    assert {unit(path) for path in modules()} - set(LEVELS) == set()


@pytest.mark.parametrize("path", modules(), ids=[str(path.relative_to(ROOT)) for path in modules()])
def test_imports_point_one_way_and_siblings_do_not_import_each_other(path: Path) -> None:
    here = unit(path)
    wrong = [
        f"{here} (level {LEVELS.get(here)}) imports {there} (level {LEVELS.get(there)})"
        for there in sorted(units_imported_by(path))
        if LEVELS.get(there, 99) >= LEVELS.get(here, -1) and (here, there) not in EXCEPTIONS
    ]
    assert wrong == []


def test_every_exception_is_still_needed_and_waits_until_it_is_called() -> None:
    for here, there in EXCEPTIONS:
        paths = [path for path in modules() if unit(path) == here]
        assert any(there in units_imported_by(path) for path in paths)
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            early = imported(path, at_import_time(tree))
            assert not any(name.startswith(f"fusion.{there}") for name in early)


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_modules_import_nothing_heavy_at_module_level(name: str) -> None:
    path = home_of(f"fusion.{name}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tops = {found.partition(".")[0] for found in imported(path, at_import_time(tree))}
    assert tops & HEAVY == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import fusion",
        "import fusion.errors, fusion.registry, fusion.recipe, fusion.keymap, fusion.ledger",
        "import fusion.evaluate",
        "from fusion import FusionError, Ledger, Recipe, load_recipe, register_glue",
        "import fusion.synthetic",
    ],
)
def test_importing_the_light_modules_brings_in_no_torch(statement: str) -> None:
    heavy = sorted(HEAVY)
    program = f"import sys\n{statement}\nassert not [m for m in {heavy} if m in sys.modules]\n"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_public_name_has_a_home_and_every_home_a_public_name() -> None:
    assert set(fusion.__all__) == {*fusion._HOME, "__version__"}
    for name, module in fusion._HOME.items():
        home = home_of(module)
        tree = ast.parse(home.read_text(encoding="utf-8"))
        bound = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        bound |= {a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        bound |= {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        assert name in bound, f"{module} has no {name}"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fusion' has no attribute 'nothing'"):
        _ = fusion.nothing


def test_public_names_are_not_hidden_by_modules_of_the_same_name() -> None:
    for name in fusion.__all__:
        assert getattr(fusion, name) is getattr(fusion, name)
        assert not isinstance(getattr(fusion, name), types.ModuleType), name


@pytest.mark.parametrize("folder", ["fusion", "benchmarks", "tests"])
def test_every_package_that_is_imported_is_declared(folder: str) -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    declared = {_plain(name) for name in chain(project["dependencies"], *extras)} | USED_IF_THERE
    owners = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT.parent)}: {name}"
        for path in (ROOT.parent / folder).rglob("*.py")
        for name in _imported(path) & owners.keys()
        if not declared & {_plain(owner) for owner in owners[name]}
    }
    assert undeclared == set()


def _plain(requirement: str) -> str:
    """The name alone, as pip compares it."""
    return re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")


def _imported(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names
