"""What stands in for the classes that a pickle names, and the names that no checkpoint may hold.

Nothing that a file names is imported or called. A class is a `Named`; an instance of it is a
`StandIn` that keeps what the pickle gave it. Names that only a pickle made to run code holds
(`os.system`, `builtins.eval`) are refused all the same, so that a user hears of such a file.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules of which nothing belongs in a checkpoint.
_MODULES = _words(
    "os posix nt posixpath ntpath subprocess sys imp runpy pkgutil zipimport pty shutil socket ssl "
    "_ctypes code codeop commands webbrowser pickle _pickle cPickle dill cloudpickle joblib "
    "marshal shelve operator _operator inspect gc signal threading _thread ftplib smtplib "
    "telnetlib tempfile glob fileinput linecache platform pdb bdb profile cProfile timeit trace "
    "doctest pydoc site sysconfig atexit faulthandler resource mmap fcntl pwd "
    "cmd"
)
# The same, with all modules below them.
_PACKAGES = _words(
    "os importlib ctypes cffi multiprocessing concurrent asyncio urllib http xmlrpc requests httpx "
    "aiohttp pip setuptools distutils ensurepip venv unittest idlelib lib2to3 antigravity"
)
# Of these modules the classes below are plain data; everything else in them is refused.
_PLAIN = {
    "builtins": _words(
        "object bool int float complex str bytes bytearray list tuple dict set frozenset slice "
        "range type ellipsis NoneType Exception ValueError TypeError KeyError RuntimeError"
    ),
    "functools": frozenset({"partial"}),
    "io": frozenset({"BytesIO", "StringIO"}),
    "_io": frozenset({"BytesIO", "StringIO"}),
    "copyreg": frozenset({"_reconstructor", "__newobj__", "__newobj_ex__"}),
    "types": frozenset({"SimpleNamespace", "NoneType"}),
    "_codecs": frozenset({"encode"}),
    "codecs": frozenset({"encode"}),
}
_TREES = _words(
    "torch.hub torch.jit torch.package torch.ops torch._ops torch.classes torch.fx torch._dynamo "
    "torch._inductor torch.onnx torch.multiprocessing torch.serialization torch.testing "
    "torch.distributed.rpc torch.distributed.elastic torch.distributed.run "
    "torch.utils.cpp_extension torch.utils.bottleneck torch.utils.collect_env "
    "torch.utils.data.datapipes numpy.testing numpy.f2py numpy.distutils numpy.lib"
)
_NAMES = _words(
    "torch.load torch.save torch.compile torch.storage._load_from_bytes torch.from_file "
    "numpy.load numpy.loadtxt numpy.genfromtxt numpy.fromfile numpy.memmap numpy.save "
    "numpy.core.multiarray.fromfile numpy.fromregex numpy.fromfunction numpy.vectorize "
    "numpy.apply_along_axis pandas.eval pandas.read_pickle pandas.io.pickle.read_pickle"
)
_DATA = frozenset({"torch.serialization._get_layout"})
# Attributes that lead from any object to code.
_STEPS = _words(
    "os posix nt subprocess sys importlib builtins __builtin__ eval exec execfile compile open "
    "system popen getattr setattr delattr"
)


class PickleError(ValueError):
    """A pickle that cannot be read; the message says why and lacks the file."""


class RefusedError(PickleError):
    """A pickle that names what only code would need."""


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that a pickle names; not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


GETATTR = Named("builtins", "getattr")  # compared by identity; never left on the stack as a value


class StandIn:
    """An object of a class that is not here: what the pickle says of it, and no behaviour.

    Attributes:
        stands_for: the class
        arguments: what the pickle would have called the class with
        keywords: the same, by name
        state: what the pickle would have set on the object; the string keys of a dict (or of the
            dicts in a tuple) are attributes too, so `vars()` works as on an `argparse.Namespace`
        entries: what it holds, if the class is a kind of dict
        elements: what it holds, if the class is a kind of list or set
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "arguments",
        "elements",
        "entries",
        "keywords",
        "stands_for",
        "state",
    )

    def __init__(self, stands_for: Named, arguments: tuple[Any, ...] = ()) -> None:
        self.stands_for = stands_for
        self.arguments = arguments
        self.keywords: dict[str, Any] = {}
        self.state: Any = None
        self.entries: dict[Any, Any] = {}
        self.elements: list[Any] = []

    def build(self, state: Any) -> None:
        """Keep a state; `__setstate__` is not called."""
        self.state = state
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({k: v for k, v in part.items() if isinstance(k, str)})

    def __repr__(self) -> str:
        return f"<stand-in for {self.stands_for}>"


def member(arguments: Any) -> StandIn:
    """What stands for `getattr(CLASS, "NAME")`, as Python 3.11.2 pickles an enum's member.

    It is a stand-in of the class, told by the name; nothing is looked up.

    Raises:
        RefusedError: CLASS is no class that a stand-in is for, or NAME is no plain name.
    """
    match arguments:
        case (Named(module, name), str(plain)) if module not in _PLAIN:
            if plain.isidentifier() and not plain.startswith("_"):
                refuse_dangerous(module, f"{name}.{plain}")
                return StandIn(Named(module, name), (plain,))
    raise RefusedError(f"it pickles {GETATTR}")


def normal_name(module: str, name: str) -> tuple[str, str]:
    """The names of today for those of Python 2 (protocols 0 to 2), by Python's own table."""
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name


def refuse_dangerous(module: str, name: str) -> None:
    """Check a name that a pickle holds.

    Raises:
        RefusedError: nothing that a checkpoint needs goes by that name.
    """
    full = f"{module}.{name}"
    if full in _DATA:
        return
    plain = _PLAIN.get(module)
    bad = (
        module in _MODULES
        or module.partition(".")[0] in _PACKAGES
        or (plain is not None and name not in plain)
        or full in _NAMES
        or any(_below(full, tree) for tree in _TREES)
        or _leads_to_code(name.split("."))
    )
    if bad:
        raise RefusedError(f"it pickles {full}")


def _below(full: str, tree: str) -> bool:
    return full == tree or full.startswith(f"{tree}.")


def _leads_to_code(steps: Iterable[str]) -> bool:
    """A dotted name is a chain of getattr: `Config.os.system`, `f.__globals__`."""
    first, *rest = steps
    return any(s in _STEPS or s.startswith("__") for s in rest) or (
        first.startswith("__") and first not in _PLAIN["copyreg"]
    )
