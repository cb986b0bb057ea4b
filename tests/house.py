"""The shape of the source tree in numbers: imports between rooms, import cycles, sizes of files and functions.

A room is a direct child of a top folder: a sub-package or a file. An arrow is one room that imports another one.
Everything is read from the source, so imports inside functions count as well; no product code is imported.

    python -m tests.house           # prints the report for this repository
    python -m tests.house ROOT      # the same for another checkout
"""

from __future__ import annotations

import ast
import functools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("actors", "learner", "launch")

FILE_LINES = 400
FUNCTION_LINES = 55
ARGUMENTS = 7
"""Of one function, `self` and `cls` not counted."""
FOLDER_FILES = 12
"""Python files of one folder, `__init__.py` not counted."""


@dataclass(frozen=True)
class Function:
    """One function or method: `place` is its file and qualified name, `lines` counts from `def` to its end."""

    place: str
    lines: int
    arguments: int
    is_command: bool
    """A command of the command line, whose arguments are its options."""


@dataclass(frozen=True)
class House:
    """The modules below the top folders of `root`, by dotted name; a package stands for its `__init__.py`."""

    root: Path
    paths: Mapping[str, Path]
    trees: Mapping[str, ast.Module]

    @classmethod
    @functools.cache
    def at(cls, root: Path = ROOT, tops: tuple[str, ...] = TOPS) -> House:
        paths = {}
        for path in sorted(path for top in tops for path in (root / top).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            paths[name.removesuffix(".__init__")] = path
        return cls(root, paths, {name: ast.parse(path.read_text("utf-8")) for name, path in paths.items()})

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """For each module the modules of the house that it imports."""
        return {name: (imported(tree, self.paths) & self.paths.keys()) - {name} for name, tree in self.trees.items()}

    def arrows(self, top: str) -> dict[str, set[str]]:
        """For each room of `top` the other rooms of `top` that it imports."""
        rooms: dict[str, set[str]] = {}
        for name, others in self.imports.items():
            for other in others:
                if name.split(".")[0] == other.split(".")[0] == top and _room(name) != _room(other):
                    rooms.setdefault(_room(name), set()).add(_room(other))
        return rooms

    def cycles(self) -> list[set[str]]:
        """Groups of modules that import each other, directly or through others."""
        return components(self.imports)

    def file_lines(self) -> dict[str, int]:
        return {self._place(path): len(path.read_text("utf-8").splitlines()) for path in self.paths.values()}

    def folder_files(self) -> dict[str, int]:
        return Counter(self._place(path.parent) for path in self.paths.values() if path.name != "__init__.py")

    def functions(self) -> Iterator[Function]:
        for name, tree in self.trees.items():
            yield from _functions(tree, f"{self._place(self.paths[name])}:")

    def _place(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def imported(tree: ast.AST, known: Set[str] | Mapping[str, object] = frozenset()) -> set[str]:
    """Dotted names that `tree` imports anywhere, by statement or by a literal name.

    `from a import b` counts as `a.b` if that is a `known` module, else as `a`.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in below}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                names.add(str(node.args[0].value))
    return names


def components(edges: Mapping[str, Set[str]]) -> list[set[str]]:
    """Strongly connected components of two nodes or more."""
    reachable = {node: _reachable(node, edges) for node in edges}
    found = {
        frozenset({node} | {other for other in reach if node in reachable[other]}) for node, reach in reachable.items()
    }
    return sorted((set(each) for each in found if len(each) > 1), key=min)


def _reachable(start: str, edges: Mapping[str, Set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(edges[node])
    return reached


def assert_only(exceptions: Iterable[str], found: Iterable[str]) -> None:
    """Fail unless exactly the exceptions were found, so that a list of exceptions can only become shorter."""
    exceptions, found = set(exceptions), set(found)
    wrong = sorted(found - exceptions) + [f"{each}: remove it from the list" for each in sorted(exceptions - found)]
    if wrong:
        raise AssertionError("\n".join(wrong))


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _functions(node: ast.AST, above: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [each.arg for each in (*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs)]
            own = names[1:] if names[:1] in (["self"], ["cls"]) else names
            decorated = any(".command(" in ast.unparse(decorator) for decorator in child.decorator_list)
            command = decorated or above.endswith("/command.py:")
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            yield Function(above + child.name, lines, len(own), command)
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _functions(child, f"{above}{child.name}." if named else above)


def report(house: House) -> Iterator[str]:
    for top in TOPS:
        rooms = house.arrows(top)
        lines = sum(count for path, count in house.file_lines().items() if path.startswith(f"{top}/"))
        yield f"{top}: {lines} lines, {sum(map(len, rooms.values()))} arrows"
        yield from (f"    {room} -> {' '.join(sorted(others))}" for room, others in sorted(rooms.items()))
    yield from _listed("import cycles", [" <-> ".join(sorted(cycle)) for cycle in house.cycles()])
    long_files = {path: count for path, count in house.file_lines().items() if count > FILE_LINES}
    yield from _listed(f"files over {FILE_LINES} lines", [f"{path}: {count}" for path, count in long_files.items()])
    functions = list(house.functions())
    over = [f"{each.place}: {each.lines}" for each in functions if each.lines > FUNCTION_LINES]
    yield from _listed(f"functions over {FUNCTION_LINES} lines", over)
    wide = [
        f"{each.place}: {each.arguments}" for each in functions if each.arguments > ARGUMENTS and not each.is_command
    ]
    yield from _listed(f"functions with more than {ARGUMENTS} arguments", wide)
    full = [f"{folder}: {count}" for folder, count in house.folder_files().items() if count > FOLDER_FILES]
    yield from _listed(f"folders with more than {FOLDER_FILES} Python files", full)


def _listed(title: str, entries: list[str]) -> Iterator[str]:
    yield f"{title}: {len(entries)}"
    yield from (f"    {entry}" for entry in entries)


if __name__ == "__main__":
    print("\n".join(report(House.at(Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT))))
