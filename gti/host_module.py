"""What the source of a net's module tells of a mistake, without running it: for the first step, before TensorFlow.

`gti.model.base` builds the host part and finds what only that tells: shapes, and names that other modules lack.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from gti import nets, old_kit
from gti.errors import UsageError, listing

_PARTS = ("BATCH_NORM", "host_layers")


def check(net: str, nets_dir: str | Path | None = None) -> None:
    """Look at the module of a net, wherever it lies. Raises UsageError that lists all that is wrong with it."""
    path = nets.users_module(net, nets_dir) or nets.MODEL_DIR / f"{net}.py"
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as problem:
        line = getattr(problem, "lineno", None) or 1
        raise UsageError(f"{path}, line {line}", f"is no Python ({problem})", fix="mend the module") from None
    except OSError as problem:
        raise UsageError(str(path), f"cannot be read ({problem.strerror})") from None
    found = [*_imports(tree, path), *_parts(tree), *_calls(tree)]
    if found:
        raise UsageError(listing(str(path), found))


def _imports(tree: ast.Module, path: Path) -> Iterator[str]:
    # Those at the top, which running the module needs; one inside `try` may be missed.
    for node in tree.body:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules = [node.module]
        for module in modules:
            first = module.partition(".")[0]
            if not _exists(first) and not (path.parent / f"{first}.py").exists():
                yield f"line {node.lineno}: imports {first}, which is not installed. Fix: install it, or leave it out."
        if isinstance(node, ast.ImportFrom) and node.module == "gti.layers":
            for name in [alias.name for alias in node.names if alias.name in old_kit.FUNCTIONS]:
                yield (
                    f"line {node.lineno}: imports {name}, a function of the old kit. Fix: use "
                    f"{old_kit.FUNCTIONS[name]} (docs/old_kit.md)."
                )


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _parts(tree: ast.Module) -> Iterator[str]:
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            bound |= {alias.asname or alias.name for alias in node.names}
    if "*" not in bound:
        missing = [part for part in _PARTS if part not in bound]
        if missing:
            yield (
                f"is not the module of a net, it lacks {' and '.join(missing)}; expected BATCH_NORM = True or False, "
                "and host_layers(x, *, classes). Fix: see gti/model/digits.py for an example."
            )


def _calls(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "Dense":
            yield (
                f"line {node.lineno}: has a Dense layer, which fusion and conversion do not know; expected HostDense "
                "of gti.layers. Fix: write HostDense(units, activation) in its place."
            )
        words = [*node.args, *(keyword.value for keyword in node.keywords)]
        if name.lower() == "softmax" or any(
            (isinstance(word, ast.Constant) and word.value == "softmax")
            or (isinstance(word, ast.Attribute) and word.attr == "softmax")
            for word in words
        ):
            yield (
                f"line {node.lineno}: computes softmax, which training and the .MODEL add themselves; expected logits. "
                "Fix: leave softmax out."
            )
