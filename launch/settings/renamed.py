"""Renamed settings: error messages name the new key, and the configuration of an older run is read with it."""

import copy
from typing import Any

Tree = dict[str, Any]

RENAMED = {"learner.correction": "learner.loss.correction", "opponent": "learner.loss.opponent"}
"""Old dotted key -> new dotted key. The entry of a section covers every key below it."""
VALUES = {"learner.loss.kind": {"reward_pg": "rloo"}}
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
