"""The imports of our packages as a graph, read from the sources: nothing is imported.

Imports inside functions count as well. What `firstsight/__init__.py` imports under `if TYPE_CHECKING` is left out: it does
not run, and the public interface may name everything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
INTERFACE = ROOT / "firstsight" / "__init__.py"
PACKAGES = ("storage", "firstsight", "phase1_teacher", "phase2_student")


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    module: str
    name: str | None
    """Of `from module import name`."""
    line: int


def module_files() -> dict[str, Path]:
    """Every module of the four packages by its dotted name; a package stands for its `__init__`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """What a file imports."""
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8")), typing=path != INTERFACE))


def _imports(node: ast.AST, *, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
            and not typing
        ):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, None, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import"
            assert child.module is not None
            yield from (Import(child.module, alias.name, child.lineno) for alias in child.names)
        else:
            yield from _imports(child, typing=typing)


def module_graph() -> dict[str, set[str]]:
    """For each of our modules those of ours that it imports."""
    files = module_files()
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        for each in imports_of(path):
            inner = f"{each.module}.{each.name}"
            target = inner if inner in files else each.module
            if target in files and target != module:
                graph[module].add(target)
    return graph


def below(graph: Mapping[str, set[str]], folder: str) -> dict[str, set[str]]:
    """The graph of what lies directly in a package folder: its modules, and each folder in it as a whole."""
    depth = folder.count(".") + 1
    names = {module: ".".join(module.split(".")[: depth + 1]) for module in graph if module.startswith(f"{folder}.")}
    contracted: dict[str, set[str]] = {name: set() for name in names.values()}
    for module, name in names.items():
        contracted[name] |= {names[target] for target in graph[module] if target in names} - {name}
    return contracted


def folders(graph: Mapping[str, set[str]]) -> list[str]:
    """Every package folder, as a dotted name."""
    return sorted({module.rsplit(".", 1)[0] for module in graph if "." in module})


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; empty where there is none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if found := visit(target, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])
