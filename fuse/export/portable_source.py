"""A module of ours as one file of a flat folder: the definitions that are reached, with imports among such files.

The text of a definition stays as it is, comments and all, but for its imports of ours: transformers copies and fetches
the files of a folder that lie beside each other and that `from .file import name` names, so that is how they read.
"""

import ast
import sys
from collections.abc import Collection, Iterable, Mapping

from fuse.export.portable_reach import Module, Name, imported, is_ours, read_module, uses

ENTRIES = {
    "fuse.model.config": "configuration_fuse",
    "fuse.model.fused": "modeling_fuse",
    "fuse.model.processor": "processing_fuse",
}
NOTE = "# Written by `fuse export --to portable` from {module}; what this folder does not run is left out.\n"
BY_NAME = '''

def _imported_by_name() -> None:
    """transformers copies the files that an import names, so these are named. Nothing calls this."""
'''


def flat(module: str) -> str:
    """The name of the file that a module of ours becomes, without .py."""
    return ENTRIES.get(module, module.replace(".", "_"))


def written(name: str, kept: Collection[str], others: Iterable[Name] = ()) -> str:
    """The source of one file.

    kept: the module's definitions that are reached. others: what is imported under a name made at run time, (module,
    definition) each.
    """
    source = read_module(name)
    statements = [one for one in source.tree.body if any(one in source.definitions.get(word, ()) for word in kept)]
    doc = ast.get_docstring(source.tree, clean=False)
    by_name = dict(others)
    head = _imports(source, statements, kept, by_name)
    body = [_text(source, one, by_name) for one in statements]
    text = (f'"""{doc}"""\n\n' if doc else "") + NOTE.format(module=name) + "\n"
    text += "\n".join("".join(f"{line}\n" for line in group) for group in head if group) + _spaced(statements, body)
    if by_name:
        text += BY_NAME + "".join(f"    from .{flat(one)} import {what}\n" for one, what in sorted(by_name.items()))
    return text


def _spaced(statements: list[ast.stmt], body: list[str]) -> str:
    """Two lines around functions and classes, none between assignments."""
    text, before = "", False
    for number, (statement, lines) in enumerate(zip(statements, body, strict=True)):
        wide = isinstance(statement, ast.FunctionDef | ast.ClassDef)
        text += ("\n\n" if wide or before else "" if number else "\n") + lines + "\n"
        before = wide
    return text


def _imports(
    source: Module, statements: list[ast.stmt], kept: Collection[str], by_name: dict[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """The import lines that the statements need: Python's own, of other packages, of ours.

    by_name gets what a module imported as a whole is asked for.
    """
    used = {node.id for one in statements for node in ast.walk(one) if isinstance(node, ast.Name)} | set(kept)
    python, others, ours = [], [], []
    for statement in source.tree.body:
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        names = [alias for alias in statement.names if (alias.asname or alias.name.split(".")[0]) in used]
        module = statement.module or "" if isinstance(statement, ast.ImportFrom) else statement.names[0].name
        lines = python if module.split(".")[0] in sys.stdlib_module_names else others
        if names and isinstance(statement, ast.Import):
            lines.append(ast.unparse(ast.Import(names)))
        elif names and is_ours(module):
            ours += _ours(ast.ImportFrom(module, names, 0))
        elif names:
            lines.append(ast.unparse(ast.ImportFrom(module, names, 0)))
    whole = {module for local, (module, what) in source.ours.items() if not what and local in used}
    for statement in statements:
        whole |= {module for module, what in _inner(statement).values() if not what}
    for statement in statements if whole else ():
        by_name |= {module: what for module, what in sorted(uses(source, statement)) if module in whole and what}
    return python, others, ours


def _inner(statement: ast.stmt) -> Mapping[str, Name]:
    """What of ours is imported inside of a definition."""
    nodes = (node for node in ast.walk(statement) if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""))
    return {local: name for node in nodes for local, name in imported(node)}


def _ours(statement: ast.ImportFrom) -> list[str]:
    """A `from fuse... import` as imports among the files of one folder."""
    lines: dict[str, list[ast.alias]] = {}
    for alias in statement.names:
        ((local, (module, what)),) = imported(ast.ImportFrom(statement.module, [alias], 0))
        if what:
            lines.setdefault(f".{flat(module)}", []).append(ast.alias(what, local if local != what else None))
        else:
            lines.setdefault(".", []).append(ast.alias(flat(module), local))
    return [f"from {where} import {', '.join(ast.unparse(alias) for alias in names)}" for where, names in lines.items()]


def _text(source: Module, statement: ast.stmt, by_name: Mapping[str, str]) -> str:
    """The text of a definition with the comments above it; its imports of ours are among files."""
    first = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", ()))]) - 1
    while first and source.lines[first - 1].startswith("#"):
        first -= 1
    lines = source.lines[first : statement.end_lineno]
    nodes = [node for node in ast.walk(statement) if isinstance(node, ast.ImportFrom | ast.Call)]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):  # from the end, so that numbers stay
        at, until = node.lineno - 1 - first, (node.end_lineno or node.lineno) - first
        if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            lines[at:until] = [" " * node.col_offset + line for line in _ours(node)]
        elif isinstance(node, ast.Call) and _made_at_run_time(node):
            prefix = node.args[0].values[0].value  # pyright: ignore - as `_made_at_run_time` found it
            lines[at] = lines[at].replace(f'f"{prefix}', f'f".{prefix.replace(".", "_")}')
            lines[at] = lines[at].replace('}")', '}", __package__)', 1)
    return "\n".join(lines)


def _made_at_run_time(node: ast.Call) -> bool:
    """Whether a call is `import_module(f"fuse.room.{...}")`."""
    given = node.args[0] if isinstance(node.func, ast.Name) and node.func.id == "import_module" and node.args else None
    start = given.values[0] if isinstance(given, ast.JoinedStr) else None
    return isinstance(start, ast.Constant) and is_ours(str(start.value))
