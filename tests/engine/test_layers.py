"""The rooms of the engine stand on each other: a package imports those below it, never one above it or beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import distill_dagster

ROOT = Path(distill_dagster.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("tables",),
    ("config",),
    ("kinds",),
    ("tasks",),
    ("intake",),
    ("prompts",),
    ("teacher.providers",),
    ("teacher.completions",),
    ("teacher.judge", "teacher.imagine"),
    ("teacher.asking",),
    ("curation.dedup",),
    ("curation.task_view",),
    ("curation.text_columns",),
    ("curation.candidates",),
    ("curation.soft_labels",),
    ("curation.scores",),
    ("curation.filters",),
    ("curation.dataset",),
    ("curation.__main__",),
    ("student", "evaluation"),
    ("release",),
    ("serving",),
    ("pipeline",),
    ("new_task",),
    ("tuning",),
    ("orchestration",),
    ("operations",),
    ("definitions",),
    ("cli",),
    ("__main__",),
)
"""From ground to roof. Packages on one floor are siblings: they talk through tables and do not import each other."""
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def room_of(module: str) -> str | None:
    """The room of a module of the engine: the longest name in `FLOORS` that it begins with."""
    parts = module.split(".")[1:]
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in FLOOR_OF), None)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, at module level or inside a function, but not below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            # A name may be a module: `from distill_dagster.core import plots`.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports_of(node)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def edges() -> set[tuple[str, str, str]]:
    """Each import between two rooms: importing module, its room, and the other room."""
    found = set()
    for module, path in modules():
        room = room_of(module)
        for target in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            other = room_of(target) if target.startswith("distill_dagster.") else None
            if room is not None and other is not None and other != room:
                found.add((module, room, other))
    return found


def test_every_module_has_a_room() -> None:
    outside = {"distill_dagster", "distill_dagster.teacher", "distill_dagster.curation"}
    assert [module for module, _ in modules() if room_of(module) is None and module not in outside] == []
    loose = sorted(path.name for path in ROOT.glob("*.py"))
    assert loose == ["__init__.py", "__main__.py", "definitions.py"]


def test_a_room_imports_only_rooms_below_it() -> None:
    upwards = [
        f"{module} ({room}) imports {other}"
        for module, room, other in sorted(edges())
        if FLOOR_OF[other] >= FLOOR_OF[room]
    ]
    assert upwards == [], "\n".join(upwards)


def test_no_two_rooms_import_each_other() -> None:
    """This follows from the floors as long as the floors are right; it holds whatever they are."""
    pairs = {(room.split(".")[0], other.split(".")[0]) for _, room, other in edges()}
    assert [pair for pair in sorted(pairs) if pair[0] < pair[1] and pair[::-1] in pairs] == []


def test_the_engine_knows_neither_assets_nor_resources() -> None:
    """They stand on the engine; only the code location, which puts all together, looks the other way."""
    found = {
        module
        for module, path in modules()
        for target in imports_of(ast.parse(path.read_text(encoding="utf-8")))
        if target.split(".")[0] in ("assets", "resources")
    }
    assert found <= {"distill_dagster.definitions"}


def test_every_package_says_what_belongs_there() -> None:
    silent = [
        module
        for module, path in modules()
        if path.name == "__init__.py" and len(ast.get_docstring(ast.parse(path.read_text())) or "") < 80
    ]
    packages = [module for module in silent if module != "distill_dagster"]
    assert packages == []


def repeated_names(*kinds: type[ast.stmt]) -> dict[str, list[str]]:
    """Public names that are defined in several modules. A command of the CLI may be named like what it does."""
    found = sorted(
        (node.name, module)
        for module, path in modules()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, kinds) and isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if not node.name.startswith("_") and room_of(module) != "cli"
    )
    named = {name: [module for _, module in group] for name, group in groupby(found, key=lambda pair: pair[0])}
    return {name: where for name, where in named.items() if len(where) > 1}


def test_no_two_public_classes_share_a_name() -> None:
    assert repeated_names(ast.ClassDef) == {}


def test_no_two_public_functions_share_a_name() -> None:
    assert repeated_names(ast.FunctionDef, ast.AsyncFunctionDef) == {}
