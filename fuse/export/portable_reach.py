"""Which definitions of our own modules run where some of them run: read from the source, nothing is imported.

A definition is a top-level function, class or assignment. It reaches every name that it writes: those of its own
module, those that its module or itself imports from another of ours, and attributes of modules of ours. A name that is
shadowed by a local one is reached too: better one definition too many. Our choice, over whole modules: the modules that
run a folder share files with those that write one, and would bring most of the package along.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fuse.errors import FuseError

ROOM = Path(__file__).parents[2]
PACKAGE = "fuse"

Name = tuple[str, str]  # module and definition; the definition is "" where the module itself is meant


@dataclass(frozen=True)
class Module:
    """The source of one module, by its top-level statements.

    definitions: name -> the statements that bind it. ours: local name -> what of ours it imports. foreign: local name
    -> the import of another package that binds it.
    """

    name: str
    lines: list[str]
    tree: ast.Module
    definitions: Mapping[str, list[ast.stmt]]
    ours: Mapping[str, Name]
    foreign: Mapping[str, ast.stmt]


def file_of(module: str) -> Path | None:
    """Where a module of ours lies; None where there is none of that name."""
    path = ROOM.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def is_ours(module: str) -> bool:
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


@cache
def read_module(name: str) -> Module:
    """The module by its top-level statements. Raises FuseError where there is none of that name."""
    file = file_of(name)
    if file is None:
        raise FuseError(f"there is no module {name}")
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    definitions: dict[str, list[ast.stmt]] = {}
    ours: dict[str, Name] = {}
    foreign: dict[str, ast.stmt] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and is_ours(statement.module or ""):
            ours |= dict(imported(statement))
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            foreign |= {(alias.asname or alias.name.split(".")[0]): statement for alias in statement.names}
        else:
            for bound in _bound(statement):
                definitions.setdefault(bound, []).append(statement)
    return Module(name, text.splitlines(), tree, definitions, ours, foreign)


def imported(statement: ast.ImportFrom) -> Iterator[tuple[str, Name]]:
    """(local name, what of ours it is) for each name of a `from fuse... import`."""
    for alias in statement.names:
        inner = f"{statement.module}.{alias.name}"
        yield alias.asname or alias.name, (inner, "") if file_of(inner) else (statement.module or "", alias.name)


def reached(roots: Iterable[Name]) -> dict[str, set[str]]:
    """The definitions that the roots reach, by module; the roots are among them.

    A module that is reached as a whole (its name is handed around) brings all of its definitions. Raises FuseError for
    a name that its module does not define.
    """
    found: dict[str, set[str]] = {}
    todo = list(roots)
    while todo:
        module, name = todo.pop()
        source, kept = read_module(module), found.setdefault(module, set())
        if name in kept:
            continue
        if not name:
            todo += [(module, one) for one in source.definitions if one not in kept]
        elif name in source.ours:  # another module asks for it here
            kept.add(name)
            todo.append(source.ours[name])
        elif name in source.definitions:
            kept.add(name)
            todo += [use for statement in source.definitions[name] for use in uses(source, statement)]
        else:
            raise FuseError(f"module {module} defines no {name}")
    return found


def uses(source: Module, statement: ast.stmt) -> set[Name]:
    """What of ours a top-level statement names."""
    ours = dict(source.ours)
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            ours |= dict(imported(node))
    modules = {local: module for local, (module, name) in ours.items() if not name}
    found: set[Name] = set()
    asked: set[ast.AST] = set()  # names of modules whose attribute is taken
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add((modules[node.value.id], node.attr))
            asked.add(node.value)
        elif isinstance(node, ast.Name) and node not in asked:
            if node.id in ours:
                found.add(ours[node.id])
            elif node.id in source.definitions:
                found.add((source.name, node.id))
    return found


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.AnnAssign | ast.AugAssign):
        return [node.id for node in ast.walk(statement.target) if isinstance(node, ast.Name)]
    if isinstance(statement, ast.Assign):
        return [n.id for target in statement.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []
