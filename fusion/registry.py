"""Hosts, encoders, glue, sources and inits by name, built in, decorated or from entry points.

Looking up which names exist imports neither torch nor a plugin; asking for the thing behind a name
does. A plugin package declares entry points in the groups `fusion.hosts`, `fusion.encoders`,
`fusion.glue`, `fusion.sources` and `fusion.inits`; a module of one's own uses the decorators.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from fusion.errors import RegistryError, nearest

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Listing:
    """One row of `fusion list`: a name, its kind, and where it comes from."""

    kind: str
    name: str
    origin: str
    error: str | None = None


@dataclass
class Registry(Generic[T]):
    """Names of one kind of part.

    Args:
        kind: what the names stand for, as it is written in recipes and messages
        builtin: name -> "module:attribute", imported on first use
        base: "module:attribute" of the class that a plugin's thing is of, or derives from; "": it
            need only be callable
    """

    kind: str
    builtin: dict[str, str]
    base: str = ""
    _loaded: dict[str, T] = field(default_factory=dict)
    _origin: dict[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The entry point group of plugins."""
        return f"fusion.{self.kind}"

    @property
    def one(self) -> str:
        """The kind in the singular."""
        return self.kind.removesuffix("s")

    def _plugins(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in _entry_points(self.group, tuple(sys.path)):
            found.setdefault(point.name, point)
        return found

    def _two_owners(self) -> dict[str, tuple[EntryPoint, str]]:
        """Names that a plugin has of fusion or of another plugin, and what to say of them."""
        found = {}
        plugins = self._plugins()
        for point in _entry_points(self.group, tuple(sys.path)):
            owner = "fusion" if point.name in self.builtin else plugins[point.name].value
            if owner != point.value:
                found[point.name] = (
                    point,
                    f'{self.kind}: the name "{point.name}" of plugin {point.value}'
                    f"{_distribution(point)} is taken by {owner}",
                )
        return found

    def _has_one_owner(self, name: str) -> None:
        """Only who uses a name that two have is stopped."""
        if (clash := self._two_owners().get(name)) is not None:
            raise RegistryError(clash[1])

    def names(self) -> list[str]:
        """Every known name, sorted; imports nothing."""
        return sorted({*self.builtin, *self._loaded, *self._plugins()})

    def get(self, name: str) -> T:
        """The thing behind a name.

        Raises:
            RegistryError: the name is unknown, or two have it; the plugin that brings it fails to
                import, or brings something else.
        """
        self._has_one_owner(name)
        if name in self._loaded:
            return self._loaded[name]
        if name in self.builtin:
            self._loaded[name] = _attribute(self.builtin[name])
            return self._loaded[name]
        plugins = self._plugins()
        if name not in plugins:
            raise RegistryError(f'no {self.one} "{name}"{nearest(name, self.names())}')
        point = plugins[name]
        where = f'{self.one} "{name}": plugin {point.value}{_distribution(point)}'
        try:
            thing: T = point.load()
        except (Exception, SystemExit) as error:
            raise RegistryError(
                f"{where} failed to import: {type(error).__name__}: {error}"
            ) from error
        if (wrong := self._wrong(thing)) is not None:
            raise RegistryError(f"{where} is {thing!r}, and {wrong}")
        self._loaded.setdefault(name, thing)
        return self._loaded[name]

    def _wrong(self, thing: Any) -> str | None:
        """Why a thing is none of this kind; None: it is one."""
        if not self.base:
            return None if callable(thing) else "cannot be called"
        base = _attribute(self.base)
        derived = isinstance(thing, type) and issubclass(thing, base)
        return None if derived or isinstance(thing, base) else f"no {base.__name__}"

    def register(self, name: str) -> Callable[[C], C]:
        """Decorator that gives a class or function a name in recipes.

        Raises:
            RegistryError: the name is taken by something else.
        """

        def decorate(thing: C) -> C:
            origin = f"{thing.__module__}:{thing.__qualname__}"
            taken = self.target(name)
            if taken is not None and not self._same(name, taken, origin):
                raise RegistryError(f'{self.kind}: "{name}" is already registered by {taken}')
            self._loaded[name] = thing  # type: ignore[assignment]
            self._origin[name] = origin
            return thing

        return decorate

    def _same(self, name: str, taken: str, origin: str) -> bool:
        """A plugin may decorate a thing that its entry point reaches through another module."""
        ours = name in self.builtin or name in self._origin
        return taken == origin or (not ours and _root(taken) == _root(origin))

    def target(self, name: str) -> str | None:
        """Where a name is defined, as "module:attribute"; None when unknown. Imports nothing.

        Raises:
            RegistryError: two have it.
        """
        self._has_one_owner(name)
        if name in self.builtin:
            return self.builtin[name]
        if name in self._origin:
            return self._origin[name]
        point = self._plugins().get(name)
        return point.value if point is not None else None

    def listing(self) -> list[Listing]:
        """Every name with its origin; plugins are imported so that a broken one shows."""
        clashes = self._two_owners()
        rows = [Listing(self.kind, name, "built in") for name in sorted(self.builtin)]
        for name, point in sorted(
            self._plugins().items() | {(n, p) for n, (p, _) in clashes.items()}
        ):
            error = None
            try:
                self.get(name)
            except RegistryError as problem:
                error = str(problem)
            rows.append(Listing(self.kind, name, f"{point.value}{_distribution(point)}", error))
        listed = {row.name for row in rows}
        rows += [
            Listing(self.kind, name, origin)
            for name, origin in sorted(self._origin.items())
            if name not in listed
        ]
        return rows


def _attribute(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _root(target: str) -> str:
    return target.partition(":")[0].partition(".")[0]


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Read once for a search path: it opens a file of every installed package."""
    return entry_points(group=group)


def _distribution(point: EntryPoint) -> str:
    return f" ({point.dist.name} {point.dist.version})" if point.dist is not None else ""


TOOLKITS = ("fairseq", "bert-nmt", "marian", "opennmt", "joeynmt", "sockeye")

HOSTS: Registry[Any] = Registry(
    "hosts",
    {
        name: f"fusion.hosts.families:{name.replace('-', '_').upper()}"
        for name in (
            *("marian", "bart", "mbart", "m2m_100", "nllb-moe", "plbart", "pegasus", "pegasus_x"),
            *("bigbird_pegasus", "blenderbot", "blenderbot-small", "mvp", "fsmt", "led"),
            *("prophetnet", "t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma"),
            *("t5gemma2", "seamless_m4t", "seamless_m4t_v2", "encoder-decoder"),
        )
    }
    | {
        name: f"fusion.hosts.causal_families:{name.upper()}"
        for name in (
            *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"),
            *("olmo2", "smollm3", "granite", "gpt2", "gpt_neox", "opt"),
        )
    }
    | {"fusion_transformer": "fusion.hosts.transformer:TRANSFORMER"},
    base="fusion.hosts.family:Family",
)
ENCODERS: Registry[Any] = Registry("encoders", {"auto": "fusion.encoders.auto:build_auto_encoder"})
GLUE: Registry[Any] = Registry(
    "glue",
    {
        "bert-fused": "fusion.glue.bert_fused:BertFused",
        "bottleneck": "fusion.glue.bottleneck:Bottleneck",
        "calm": "fusion.glue.calm:Calm",
        "distill": "fusion.glue.distill:Distill",
        "dynamic-switch": "fusion.glue.dynamic_switch:DynamicSwitch",
        "embedding": "fusion.glue.embedding:EncoderEmbedding",
        "gated": "fusion.glue.gated:GatedCrossAttention",
        "joint-attention": "fusion.glue.joint_attention:JointAttention",
        "lora": "fusion.glue.lora:Lora",
        "replace-encoder": "fusion.glue.replace_encoder:ReplaceEncoder",
        "soft-prefix": "fusion.glue.soft_prefix:SoftPrefix",
        "stacked": "fusion.glue.stacked:Stacked",
    },
    base="fusion.glue.base:Glue",
)
SOURCES: Registry[Any] = Registry(
    "sources",
    {
        "safetensors": "fusion.checkpoints.safetensors:open_safetensors",
        "torch": "fusion.checkpoints.torch:open_torch",
        "directory": "fusion.checkpoints.directory:open_directory",
        "npz": "fusion.checkpoints.npz:open_npz",
        "distributed": "fusion.checkpoints.distributed:open_distributed",
    }
    | {
        name: f"fusion.checkpoints.{name.replace('-', '_')}:open_{name.replace('-', '_')}"
        for name in TOOLKITS
    },
)
INITS: Registry[Any] = Registry(
    "inits",
    {
        name: f"fusion.inits:{name}"
        for name in (
            *("transformer", "xavier", "normal", "zeros", "ones", "default", "identity"),
            *("orthogonal", "copy", "mean_rows"),
        )
    },
)
ALL: tuple[Registry[Any], ...] = (HOSTS, ENCODERS, GLUE, SOURCES, INITS)

register_host = HOSTS.register
register_encoder = ENCODERS.register
register_glue = GLUE.register
register_source = SOURCES.register
register_init = INITS.register


def keyword_options(target: str) -> list[str] | None:
    """Keyword-only parameters of a class or function, read from its source file, not imported.

    The recipe's options of a glue method are the keyword-only parameters of its constructor;
    reading them from the syntax tree lets a typo in a recipe be reported before torch is imported.

    Returns:
        The names in order, or None when the source cannot be read (the check then happens later).
    """
    module, _, attribute = target.partition(":")
    loaded = sys.modules.get(module)
    try:
        # finding a.b imports a, which runs a plugin's code
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        tree = ast.parse(Path(spec.origin).read_bytes())
    except Exception:
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return [argument.arg for argument in node.args.kwonlyargs]
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return [argument.arg for argument in item.args.kwonlyargs]
    return None


def annotated_fields(module_name: str, class_name: str) -> list[str]:
    """Names of a dataclass's annotated fields, read from its source file, not imported."""
    package, _, leaf = module_name.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    path = Path(spec.origin).parent / (leaf.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        item.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
