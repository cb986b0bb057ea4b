"""What is said of a file that is no configuration of a verb: a directory, of another kind or verb, or not there."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from launch.settings.verbs import VERBS, Verb
from launch.settings.yaml_text import YamlError

OTHER_KINDS = (".toml", ".ini", ".cfg", ".py", ".sh")


def no_yaml(path: Path, error: YamlError) -> str:
    """Say what is wrong with a text that is no YAML, or that its name promises something else."""
    if path.suffix in OTHER_KINDS:
        return f"ends in {path.suffix}; allowed is YAML: `section:` with `key: value` lines below it; write it as that"
    return f"{error.place}not valid YAML: {error}"


def directory(path: Path) -> str:
    """Name the configuration in a directory that was given in its place, a run's first."""
    files = [path / "config.yaml", *sorted(path.glob("*.yaml")), *sorted(path.glob("*.yml"))]
    found = next((file for file in files if file.is_file()), None)
    return f"is a directory; give {found}" if found else "is a directory; give a YAML file, or the name of a preset"


def missing(path: str, presets: Sequence[str]) -> str:
    """Say what could have been meant by a file that is not there."""
    if "=" in path:
        return f"`{path}` looks like an override; the configuration file or preset comes first"
    if not presets:
        return "no such file"
    near = difflib.get_close_matches(path, presets, n=1)
    hint = f"; nearest preset: {near[0]}" if near else ""
    return f"no such file, and no such preset (presets: {', '.join(presets)}){hint}"


def of_another_verb(path: str | Path | None, tree: Mapping[str, Any], verb: Verb) -> str | None:
    """Name the verb whose sections a file has, if `verb` lacks one of them; None if there is none."""
    if tree.keys() <= verb.model.model_fields.keys():
        return None
    alike = [each for each in VERBS.values() if tree.keys() <= each.model.model_fields.keys()]
    others = [each.name for each in alike if _accepts(each.model, tree)] or [each.name for each in alike]
    if not others:
        return None
    named = " or ".join(f"`offbeat {name}`" for name in others)
    check = "" if others[0] == "sweep" else f", or check it by `offbeat config {path} --verb {others[0]}`"
    return f"its sections are those of {named}, not of `offbeat {verb.name}`; run `offbeat {others[0]} {path}`{check}"


def _accepts(model: type[BaseModel], tree: Mapping[str, Any]) -> bool:
    try:
        model.model_validate(tree)
    except ValidationError:
        return False
    return True
