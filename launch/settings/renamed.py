"""Settings of earlier runs: read renamed ones under their new key, and list changes since.

Must not know files.
"""

import copy
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from launch.settings.fields import format_value
from launch.settings.yaml_text import leaves

Tree = dict[str, Any]

RENAMED = {
    "learner.correction": "learner.loss.correction",
    "opponent": "learner.loss.opponent",
    "watchdog.tell_seconds": "watchdog.warn_seconds",
}
"""Old dotted key -> new dotted key. The entry of a section covers every key below it."""
VALUES = {"learner.loss.kind": {"reward_pg": "rloo"}, "divergence.action": {"tell": "warn"}}
"""New dotted key -> its values of older versions, and what they are called now."""


def new_key(key: str) -> str | None:
    """Return what replaces an old `key`, or None if `key` was not renamed."""
    old = max((old for old in RENAMED if f"{key}.".startswith(f"{old}.")), key=len, default=None)
    return None if old is None else RENAMED[old] + key.removeprefix(old)


def new_value(key: str, value: Any) -> Any:
    """Return what `value` of a new `key` is called now."""
    return VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


def with_new_keys(tree: Tree) -> Tree:
    """Return a copy of a configuration in which new keys and values replace the old ones.

    An old key stays, to be refused by validation, if the new key is set too.
    """
    tree = copy.deepcopy(tree)
    for old in sorted(RENAMED, key=len, reverse=True):
        _move(tree, old, RENAMED[old])
    for key in VALUES:
        *above, name = key.split(".")
        section: Any = tree
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and name in section:
            section[name] = new_value(key, section[name])
    return tree


_FREE = ("name", "output")
"""Settings that change nothing in a run."""
_LONGEST = 80
"""Characters of a value that are shown."""


def changes(before: Tree, after: Tree, model: type[BaseModel]) -> Iterator[str]:
    """Say which settings of two recorded configurations of `model` differ, each with both values.

    Those that `before` does not name are newer than it, and not compared. What is unset and follows from other settings
    is the same as its value.
    """
    before, after = (_settled(with_new_keys(tree), model) for tree in (before, after))
    known = dict(leaves(before))
    for key, value in leaves(after):
        if key in known and known[key] != value and key not in _FREE:
            was, now = (format_value(each) for each in (known[key], value))
            yield f"{key} (was {was[:_LONGEST]}, is {now[:_LONGEST]})"


def _settled(tree: Tree, model: type[BaseModel]) -> Tree:
    """Put the numbers of the anchor in place of those that are unset; a tree of another version stays as it is."""
    learner = tree.get("learner")
    given = learner.get("anchor") if isinstance(learner, dict) else None
    if not isinstance(given, dict) or not hasattr(model, "anchor"):
        return tree
    try:
        anchor = getattr(model.model_validate(tree), "anchor", None)
    except ValidationError:
        return tree
    numbers = {name: getattr(anchor, name, 0) for name in given}  # weight 0: none, whatever its horizon
    return tree | {"learner": {**tree["learner"], "anchor": numbers}}


def remove(tree: Tree, key: str) -> None:
    """Remove a dotted key, if it exists, and every section that this leaves empty."""
    name, _, rest = key.partition(".")
    below = tree.get(name)
    if rest and isinstance(below, dict):
        remove(below, rest)
    if not rest or below == {}:
        tree.pop(name, None)


def _move(tree: Tree, old: str, new: str) -> None:
    value: Any = tree
    for part in old.split("."):
        if not isinstance(value, dict) or part not in value:
            return
        value = value[part]
    section = tree
    *above, name = new.split(".")
    for part in above:
        below = section[part] = section.get(part) or {}
        if not isinstance(below, dict):
            return
        section = below
    if name not in section:
        section[name] = value
        remove(tree, old)
