"""Where the time of a training step goes, by kinds of operations, as torch's profiler has it."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import table

# kind -> beginnings of the names of its operations
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn"),
    "softmax": ("_softmax", "_log_softmax"),
    "dropout": ("bernoulli", "native_dropout", "dropout"),
    "norms": ("native_layer_norm", "native_batch_norm"),
    "copies and casts": ("copy_", "_to_copy", "clone", "cat", "contiguous"),
    "element by element": (
        *("mul", "add", "sub", "div", "where", "sum", "fill_", "masked_fill"),
        *("relu", "threshold", "gelu", "silu", "tanh"),
    ),
    "clipping and AdamW": ("_fused_adamw", "_foreach", "linalg_vector_norm"),
}
REST = "the rest"


def kind_of(operation: str) -> str:
    """The kind whose longest beginning fits."""
    name = operation.removeprefix("aten::")
    fitting = [
        (len(start), kind)
        for kind, starts in KINDS.items()
        for start in starts
        if name.startswith(start)
    ]
    return max(fitting)[1] if fitting else REST


def milliseconds(sides: dict[str, Callable[[], object]], steps: int) -> dict[str, dict[str, float]]:
    """Of one step of every side, by kind, over some steps of each in turn; with "in all"."""
    found = {name: dict.fromkeys([*KINDS, REST], 0.0) for name in sides}
    for _ in range(steps):
        for name, step in sides.items():
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                step()
            for event in profiler.key_averages():
                found[name][kind_of(event.key)] += event.self_cpu_time_total / 1000 / steps
    return {name: kinds | {"in all": sum(kinds.values())} for name, kinds in found.items()}


def profile_table(sides: dict[str, dict[str, float]]) -> str:
    """A row per side, a column per kind, in milliseconds."""
    kinds = [*KINDS, REST, "in all"]
    rows = [["ms of a step", *kinds]]
    rows += [[name, *(f"{found[kind]:.0f}" for kind in kinds)] for name, found in sides.items()]
    return table(rows)
