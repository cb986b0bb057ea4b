"""Explain why a file is no configuration of a verb: a directory, another kind of file, another verb's, or missing."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from launch.settings.verbs import TRAIN, VERBS, Verb
from launch.settings.yaml_text import YamlError

OTHER_KINDS = (".toml", ".ini", ".cfg", ".py", ".sh")
DATA = (".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".safetensors", ".gguf", ".bin")
_REMEDIES = {
    "character '\\t'": "indent with spaces instead of tabs",
    "another document": "keep one document, and leave out the line `---`",
    "written twice": "leave one of them out",
    "special character": "remove that character",
    "looks like a space": "indent with plain spaces",
    "for the tag": "write a plain value, without `!`",
    "undefined alias": "put the text in quotes, or define the alias before it with `&`",
    "expected ':'": "write `key: value`, with a space after the colon",
    "mapping values": "begin the settings of one section in the same column, and put a text with `: ` in quotes",
    "more than": "give a configuration, not data",
    "pipe": "",
}
"""Remedy for each of PyYAML's complaints, by words of the complaint."""


def no_yaml(path: Path, error: YamlError) -> str:
    """Say what is wrong with a text that is no YAML, or that its name promises something else."""
    if path.suffix in OTHER_KINDS:
        return f"ends in {path.suffix}; allowed is YAML: `section:` with `key: value` lines below it; write it as that"
    if path.suffix in DATA:
        return _data(path)
    remedy = next((each for words, each in _REMEDIES.items() if words in str(error)), _QUOTES)
    return f"{error.place}not valid YAML: {error}" + (f"; {remedy}" if remedy else "")


_QUOTES = "correct that line; a text with any of : { } [ ] , # & * ! % @ belongs in quotes"


def no_text(path: Path, error: UnicodeDecodeError) -> str:
    """Say what is wrong with a file whose bytes are no UTF-8."""
    if path.suffix in DATA:
        return _data(path)
    packed = path.suffix in (".gz", ".zip", ".bz2", ".xz", ".zst")
    remedy = "unpack it first" if packed else "save it as UTF-8, or give a YAML file"
    return f"not a text file: byte {error.start} is not UTF-8; {remedy}"


def _data(path: Path) -> str:
    """Say where a file of data or weights goes, instead of the place of the configuration."""
    weights = path.suffix in (".safetensors", ".gguf", ".bin")
    where = f"model.path={path.parent}" if weights else f"prompts.source={path}"
    return f"ends in {path.suffix}, and the first argument is a configuration: give a YAML file, then {where}"


def directory(path: Path) -> str:
    """Name the configuration in a directory that was given in its place, a run's first."""
    files = [path / "config.yaml", *sorted(path.glob("*.yaml")), *sorted(path.glob("*.yml"))]
    found = next((file for file in files if file.is_file()), None)
    if found is None and (path / "config.json").is_file():
        return f"is the directory of a model; give a YAML file, or the name of a preset, then model.path={path}"
    return f"is a directory; give {found}" if found else "is a directory; give a YAML file, or the name of a preset"


def missing(path: str, presets: Sequence[str], verb: Verb = TRAIN) -> str:
    """Say what could have been meant by a file that is not there."""
    if "=" in path:
        return f"`{path}` looks like an override; the configuration file or preset comes first"
    if "://" in path:
        return "a URL; allowed: a YAML file or the name of a preset; download it, and give the file"
    if path == "-":
        return "standard input is not read; give a YAML file, or the name of a preset"
    file = Path(path).expanduser()
    near = [f"nearest preset: {each}" for each in difflib.get_close_matches(path, presets, n=1)]
    near = near or [f"nearest file: {each}" for each in _alike(file)]
    owners = [each.name for each in VERBS.values() if (each.presets / f"{path}.yaml").is_file()]
    made = "`offbeat init FILE.yaml` writes one" if verb is TRAIN else f"give a YAML file of `offbeat {verb.name}`"
    hint = f"it is a preset of `offbeat {owners[0]}`" if owners else near[0] if near else made
    known = f", and no such preset (presets: {', '.join(presets)})" if presets else ""
    return f"no such file{known}; looked in {file.parent.absolute()}; {hint}"


def _alike(file: Path) -> list[Path]:
    """Return the YAML file beside `file` whose name is most like its; empty if no file is."""
    try:
        names = {each.stem: each for each in sorted(file.parent.glob("*.y*ml"))}
    except OSError:
        return []
    return [names[name] for name in difflib.get_close_matches(file.stem, names, n=1)]


def of_another_verb(path: str | Path | None, tree: Mapping[str, Any], verb: Verb) -> str | None:
    """Name the verb whose sections a file has, if `verb` lacks one of them; None if there is none."""
    if tree.keys() <= verb.model.model_fields.keys():
        return None
    alike = [each for each in VERBS.values() if tree.keys() <= each.model.model_fields.keys()]
    others = [each.name for each in alike if _accepts(each.model, tree)] or [each.name for each in alike]
    if not others:
        return None
    file = shlex.quote(str(path))
    named = " or ".join(f"`offbeat {name}`" for name in others)
    check = "" if others[0] == "sweep" else f", or check it by `offbeat config {file} --verb {others[0]}`"
    return f"its sections are those of {named}, not of `offbeat {verb.name}`; run `offbeat {others[0]} {file}`{check}"


def _accepts(model: type[BaseModel], tree: Mapping[str, Any]) -> bool:
    try:
        model.model_validate(tree)
    except ValidationError:
        return False
    return True
