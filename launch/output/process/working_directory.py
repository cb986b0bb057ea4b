"""The working directory on the path of modules: seen as workers see it, and without files in the place of packages.

Workers import from the directory where a run starts before they look anywhere else. A console script does not look
there at all. Imported before everything else: must not import what such a file could stand in for.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder, all_suffixes

OURS = ("actors", "learner", "launch")
INSTALLED_IN = ("site-packages", "dist-packages")
NEVER_IMPORTED = frozenset({"antigravity", "idlelib", "test", "tests", "this", "turtle", "turtledemo"})
"""Names that Python or packages have, and that no process of a run imports."""


def join(path: list[str]) -> None:
    """Put the working directory last on `path`, unless it is there: user functions are found, packages stay first."""
    directory = _current()
    if directory is not None and not any(_same(entry, directory) for entry in path):
        path.append(directory)


def problem(path: Sequence[str] | None = None, root: str | None = None) -> str | None:
    """Name what in the working directory workers would import in place of a package, and the next step.

    Args:
        path: where modules are looked for; unset: this process's path.
        root: the directory that holds our packages; unset: this module's.

    Returns None if there is nothing.
    """
    path = sys.path if path is None else path
    root = os.path.abspath(os.path.join(__file__, *[os.pardir] * 4)) if root is None else root
    directory = _current()
    if directory is None:
        return None
    checkout = os.path.basename(root) not in INSTALLED_IN
    elsewhere = [each for each in path if not _same(each, directory) and not (checkout and _same(each, root))]
    for file, name in sorted(_modules(directory)):
        ours = name in OURS and not _same(root, directory)
        if ours or _is_installed(name, elsewhere):
            return _said(file, name, directory, ours=ours)
    return None


def _current() -> str | None:
    """Return the working directory; None if it was removed, or may not be listed."""
    try:
        directory = os.getcwd()
    except OSError:
        return None
    return directory if os.access(directory, os.R_OK | os.X_OK) else None


def _said(file: str, name: str, directory: str, *, ours: bool) -> str:
    whose = "a package of Offbeat" if ours else "part of Python" if name in sys.stdlib_module_names else "a package"
    text = f"{file} in {directory} has the name of {name}, {whose} that runs need: processes of a run would import it "
    text += "in place of that; rename it, or start from another directory"
    checkout = ours and all(os.path.isfile(os.path.join(directory, each, "__init__.py")) for each in OURS)
    return f"{text}. In another checkout use `python -m launch`" if checkout else text


def _modules(directory: str) -> list[tuple[str, str]]:
    """List the files and packages of a directory that can be imported, and their names as modules."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            suffix = next((each for each in all_suffixes() if entry.name.endswith(each)), None)
            if suffix is not None:
                found.append((entry.name, entry.name.removesuffix(suffix)))
            elif os.path.isfile(os.path.join(entry.path, "__init__.py")):
                found.append((f"{entry.name}/", entry.name))
    return found


def _is_installed(name: str, path: Sequence[str]) -> bool:
    """Return whether Python or one of the directories of `path` has a module of this name that runs may need."""
    if name in NEVER_IMPORTED or name in OURS or not name.isidentifier():
        return False
    return name in sys.stdlib_module_names or PathFinder.find_spec(name, path) is not None


def _same(entry: str, directory: str) -> bool:
    return os.path.realpath(entry or os.curdir) == os.path.realpath(directory)
