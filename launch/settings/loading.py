"""Settings: read a YAML file or preset and dotted overrides into one validated configuration, and write YAML.

Reports every mistake at once, one line each: the dotted key, what was given, what is allowed. Knows files and
pydantic's errors. Must not know the terminal, and starts nothing.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ValidationError

from actors.errors import UsageError
from actors.redaction import redact
from launch.settings.fields import TEXTS, Setting, section_models, settings
from launch.settings.no_configuration import directory, missing, no_text, no_yaml, of_another_verb
from launch.settings.renamed import Tree, new_key, new_value, remove, with_new_keys
from launch.settings.run import RunConfig, TrainingConfig
from launch.settings.verbs import TRAIN, Verb
from launch.settings.words import answer, listed, meaning, mistyped, name_of, nearest, one_line, refusal
from launch.settings.yaml_text import YamlError, dump, leaves, no_texts, parse_yaml, read_recorded, read_yaml

Config = TypeVar("Config", bound=TrainingConfig)
RECORDED = "config.yaml"  # in a run's directory: its resolved configuration
_CHANGED_DEFAULTS = (("judging", "missing_eos_score"), ("learner", "share_prompts"))
LARGEST_INTEGER = 2**63 - 1
LOCK = ".lock"
"""File in a run's directory that a live process holds locked. Unlike a process id, valid across containers."""


def preset_names(verb: Verb = TRAIN) -> list[str]:
    """Return the names accepted in place of a configuration file."""
    return sorted(path.stem for path in verb.presets.glob("*.yaml"))


def config_file(path: str | Path, verb: Verb = TRAIN) -> Path:
    """Return the file that a configuration argument means: a preset's file if it is a preset's name."""
    return verb.presets / f"{path}.yaml" if str(path) in preset_names(verb) else Path(path).expanduser()


@overload
def load_config(path: str | Path | None, overrides: Sequence[str] = (), *, older: bool = False) -> RunConfig: ...
@overload
def load_config(path: str | Path | None, overrides: Sequence[str], verb: Verb, *, older: bool = False) -> Any: ...
def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), verb: Verb = TRAIN, *, older: bool = False
) -> Any:
    """Load `path` (YAML file, preset name, or None for defaults) with `KEY=VALUE` overrides on top.

    Values of overrides are YAML; a later override wins; a mapping replaces a whole section. With `older`, and always
    for the file that a run wrote into its own directory, renamed settings are accepted under their old keys.
    Raises UsageError that names every mistake.
    """
    mistakes: list[str] = []
    read = _read(path, verb, mistakes)
    tree = read or {}
    known = list(settings(verb.model))
    if path is not None and (older or _is_recorded(Path(path))):
        tree = with_current_keys(tree, verb.model)
        tree = as_it_was(tree, verb.model) if _is_recorded(Path(path)) else tree
    for override in sorted(map(_renamed, overrides) if older else overrides, key=_after_kinds):
        _apply(override, tree, known, verb, mistakes)
    config = None if read is None else _validate(tree, verb.model, known, mistakes)
    if config is None and read and (other := of_another_verb(path, read, verb)):
        mistakes = [other]
    if config is None or mistakes:
        raise UsageError(_report(path, verb, mistakes, overrides))
    return config


def with_recorded_defaults(config: Config) -> Config:
    """Return the config of a resumed run with what its directory records of settings whose default has changed.

    `judging.missing_eos_score` was -1 by default, and prompts were not shared; a run goes on as it began, unless
    `config` sets its own.
    """
    recorded = config.directory / RECORDED
    saved = as_it_was(read_recorded(recorded), type(config)) if recorded.is_file() else {}
    for section, name in _CHANGED_DEFAULTS:
        own, before = getattr(config, section, None), saved.get(section)
        if own is not None and name not in own.model_fields_set and isinstance(before, dict) and name in before:
            config = config.model_copy(update={section: own.model_copy(update={name: before[name]})})
    return config


def as_it_was(recorded: Tree, model: type[BaseModel]) -> Tree:
    """Return what a run recorded, with what it did before a setting of `model` existed that is on by default."""
    learner = recorded.get("learner")
    if not isinstance(learner, dict) or "learner.share_prompts" not in {entry.key for entry in settings(model)}:
        return recorded
    return recorded | {"learner": {"share_prompts": False} | learner}


def dump_config(config: BaseModel) -> str:
    """Return YAML that `load_config` reads back to an equal configuration. Secrets, if any, are masked."""
    return dump(redact(config.model_dump(mode="json")), sort_keys=False, width=120)


def with_current_keys(tree: Tree, model: type[BaseModel]) -> Tree:
    """Return what an older version recorded, with the keys of today's `model`.

    Older versions recorded every setting of a section, whatever its kind; those of its other kinds are dropped.
    """
    tree, known = with_new_keys(tree), list(settings(model))
    for section in {entry.kinds_of for entry in known if entry.kinds_of}:
        default = next(entry.default for entry in known if entry.section == section)
        _keep_kind(tree, section, _lookup(tree, f"{section}.kind") or default, known)
    return tree


def _is_recorded(path: Path) -> bool:
    """Return whether a run wrote this file into its own directory."""
    return path.name == RECORDED and any((path.parent / name).exists() for name in (LOCK, "summary.json"))


def _renamed(override: str) -> str:
    key, equals, value = override.partition("=")
    key = new_key(key.strip()) or key
    return f"{key}{equals}{new_value(key, value)}"


def _no_override(given: str, verb: Verb) -> str:
    key, colon, value = given.partition(":")
    if verb.name == "data" and Path(given).exists():
        return f"{redact(given)}: a second source; put the files into one directory, and give that"
    if Path(given).suffix in (".yaml", ".yml"):
        return f"{redact(given)}: a second configuration; give one file, and its other settings as KEY=VALUE"
    if key.strip() in {setting.key for setting in settings(verb.model)}:
        example = f"{key.strip()}={value.strip() or 'VALUE'}"
    else:
        example = f"{key.strip()}={value.strip()}" if colon and value.startswith(" ") else f"for example {verb.example}"
    return f"{redact(given)}: not an override; write KEY=VALUE, {redact(example)}"


def _after_kinds(override: str) -> tuple[bool, int]:
    """Sort key: a section's kind is set before its other settings, an outer section's kind first."""
    key = override.partition("=")[0].strip()
    return not key.endswith(".kind"), key.count(".") if key.endswith(".kind") else 0


def _report(path: str | Path | None, verb: Verb, mistakes: Sequence[str], overrides: Sequence[str]) -> str:
    count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "1 mistake"
    lines = [f"configuration {path or 'from overrides'}: {count}", *(f"  {mistake}" for mistake in mistakes)]
    typed = tuple(override.partition("=")[0].strip() for override in overrides)
    in_file = path and _is_recorded(Path(path)) and not all(each.startswith(typed) for each in mistakes)
    restore = "; a run wrote this file: restore it if it is damaged" if in_file else ""
    return "\n".join([*lines, f"`offbeat {verb.name} --help` lists every setting{restore}"])


# ---------------------------------------------------------------- reading


def _read(path: str | Path | None, verb: Verb, mistakes: list[str]) -> Tree | None:
    """Return the file's mapping; on failure None, and a line in `mistakes`."""
    if path is None:
        return {}
    if not str(path):
        mistakes.append("CONFIG is empty; give a YAML file, or the name of a preset")
        return None
    try:
        loaded = read_yaml(config_file(path, verb))
    except YamlError as error:
        mistakes.append(no_yaml(Path(path), error))
    except IsADirectoryError:
        mistakes.append(directory(Path(path)))
    except UnicodeDecodeError as error:
        mistakes.append(no_text(Path(path), error))
    except FileNotFoundError:
        mistakes.append(missing(str(path), preset_names(verb), verb))
    except OSError as error:
        mistakes.append(f"cannot be read: {error.strerror}; give a YAML file, or the name of a preset")
    else:
        if loaded is None or isinstance(loaded, dict):
            return loaded or {}
        mistakes.append(f"holds {one_line(loaded)}; allowed: sections of `key: value` lines")
    return None


def _apply(override: str, tree: Tree, known: Sequence[Setting], verb: Verb, mistakes: list[str]) -> None:
    """Set one `KEY=VALUE` in `tree`."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        mistakes.append(_no_override(override, verb))
        return
    named = [setting for setting in known if setting.key == ".".join(parts)]
    expected = {kind for setting in named for kind in setting.types}
    try:
        value = parse_yaml(text)
    except YamlError as error:
        if not expected or not expected <= {str, type(None)}:
            what = redact(text, key)
            what = what if len(what) <= 80 else f"{what[:77]}..."
            mistakes.append(f"{key}: given {what}, which is not valid YAML ({error}); quote it, as in {key}='\"text\"'")
            return
        value = text  # for a text no YAML is needed
    if isinstance(value, list) and any("list of" in setting.allowed for setting in named):
        expected = set()
    if any(setting.allowed == TEXTS and setting.key == ".".join(parts[:-1]) for setting in known):
        expected = {str}
    if str in expected and not isinstance(value, str) and not (value is None and type(None) in expected):
        value = text.strip()  # YAML reads 2026 or `on` as something else than text
    section = tree
    for depth, part in enumerate(parts[:-1], start=1):
        below = section.setdefault(part, {})
        if below is None:
            below = section[part] = {}
        if not isinstance(below, dict):
            mistakes.append(
                f"{key}: `{'.'.join(parts[:depth])}` is {one_line(redact(below))} and has no settings below it"
            )
            return
        section = below
    section[parts[-1]] = copy.deepcopy(value)
    if parts[-1] == "kind":
        _keep_kind(tree, ".".join(parts[:-1]), value, known)


def _keep_kind(tree: Tree, section: str, kind: Any, known: Sequence[Setting]) -> None:
    """Drop the settings of `section` that only its other kinds have."""
    own = {entry.key for entry in known if kind in entry.only_for}
    for entry in known:
        if entry.kinds_of == section and entry.key not in own:
            remove(tree, entry.key)


# ---------------------------------------------------------------- checking


def _validate(tree: Tree, model: type[BaseModel], known: Sequence[Setting], mistakes: list[str]) -> BaseModel | None:
    _drop_empty_sections(tree, known)
    lines = dict.fromkeys([*_numbers(tree, known), *_mistyped(tree, known)])
    try:
        config, errors = _checked(tree, model)
    except UnicodeEncodeError:  # of a refused value that no message can hold
        mistakes.extend(f"{key}: given {value!a}, which is no text; write it anew" for key, value in no_texts(tree))
        return None
    for detail in errors:
        lines.update(dict.fromkeys(_explain(detail, tree, model, known)))
    mistakes.extend(lines)
    return config


def _checked(tree: Tree, model: type[BaseModel]) -> tuple[BaseModel | None, list[Any]]:
    """Return the configuration, or None and all of pydantic's errors."""
    try:
        return model.model_validate(tree), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _drop_empty_sections(tree: Tree, known: Sequence[Setting]) -> None:
    """Drop sections whose lines are all commented out, which YAML reads as null; their defaults apply."""
    for section in {entry.section for entry in known if entry.section}:
        above, _, name = section.rpartition(".")
        parent = _lookup(tree, above) if above else tree
        if isinstance(parent, dict) and name in parent and parent[name] is None:
            del parent[name]


def _numbers(tree: Tree, known: Sequence[Setting]) -> Iterator[str]:
    """Refuse `true` in place of a number, which pydantic would read as 1, and integers that no library takes."""
    for setting in known:
        value = _lookup(tree, setting.key)
        if isinstance(value, bool) and bool not in setting.types and setting.types & {int, float}:
            yield refusal(setting, value)
        elif int in setting.types and isinstance(value, int | float) and LARGEST_INTEGER < value < math.inf:
            yield f"{setting.key}: given {one_line(value)}; allowed: {setting.allowed} and below 2^63; lower it"


def _mistyped(tree: Tree, known: Sequence[Setting]) -> Iterator[str]:
    """Refuse values as `mistyped` does; most would be taken for a file of that name."""
    for setting in known:
        if (said := mistyped(setting, _lookup(tree, setting.key))) is not None:
            yield said


def _explain(detail: Mapping[str, Any], tree: Tree, root: type[BaseModel], known: Sequence[Setting]) -> Iterator[str]:
    """Word one of pydantic's errors for the user."""
    kind = detail["type"]
    if kind == "default_factory_not_called":  # the setting that it needs is refused itself
        return
    key, variant = _dotted(detail["loc"], root)
    setting = _find(known, key, variant)
    if kind == "missing" and setting is not None and setting.default != "required":
        yield refusal(setting, _lookup(tree, key))  # a list that is too short
    elif kind == "missing":
        yield from (_missing(required) for required in known if _required_below(required, key, variant))
    elif kind == "extra_forbidden":
        yield from _not_known(key, detail["input"], variant, known)
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = next(entry for entry in known if entry.section == key)
        given = _lookup(tree, tag.key)
        yield _missing(tag) if given is None else refusal(tag, given)
    elif kind == "invalid_key":
        yield f"{key}: given as a key; allowed: names of settings; put quotes around it, or remove it"
    elif kind == "value_error":
        yield f"{key}: {detail['ctx']['error']}" if key else str(detail["ctx"]["error"])
    elif setting is not None:
        given = _lookup(tree, key)
        if mistyped(setting, given):
            return  # `_mistyped` refuses it
        # Presets leave empty what only the user can know; null, if not allowed, asks for it.
        yield _missing(setting) if given is None else refusal(setting, given)
    else:
        given = redact(_lookup(tree, key), key)
        hint = answer(key, given, known)
        said = f"{key}: given {one_line(given)}; allowed: a section of `key: value` lines"
        yield f"{said}; {hint}" if hint else said


def _dotted(loc: Sequence[str | int], root: type[BaseModel]) -> tuple[str, str]:
    """Dotted key of the deepest setting or section on pydantic's path, and the kind of a section that has several."""
    model: type[BaseModel] | None = root
    parts: list[str] = []
    variant = ""
    path = iter(loc)
    for part in path:
        parts.append(str(part))
        info = model.model_fields.get(str(part)) if model else None
        models = section_models(info) if info else {}
        if not models:
            break
        if len(models) > 1:
            variant = str(next(path, ""))
        model = models.get(variant) if len(models) > 1 else next(iter(models.values()))
    return ".".join(parts), variant


def _find(known: Sequence[Setting], key: str, variant: str) -> Setting | None:
    return next((entry for entry in known if entry.key == key and _applies(entry, variant)), None)


def _required_below(setting: Setting, key: str, variant: str) -> bool:
    inside = setting.key == key or setting.section == key or setting.section.startswith(f"{key}.")
    return inside and setting.default == "required" and _applies(setting, variant)


def _applies(setting: Setting, variant: str) -> bool:
    return not setting.only_for or variant in setting.only_for


def _owned(key: str, known: Sequence[Setting]) -> list[Setting]:
    """Return the settings at or below `key` that only some kinds of their section have."""
    return [entry for entry in known if entry.only_for and f"{entry.key}.".startswith(f"{key}.")]


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


# ---------------------------------------------------------------- wording


def _missing(setting: Setting) -> str:
    return f"{setting.key}: missing; pass {setting.key}=VALUE ({setting.description})"


def _not_known(key: str, value: Any, variant: str, known: Sequence[Setting]) -> Iterator[str]:
    """Word an unknown key, or each setting below it if it is known what all of them mean here."""
    keys = {entry.key for entry in known}
    own = bool(new_key(key) or _owned(key, known))
    if not own and isinstance(value, dict) and value and all(meaning(leaf, keys) for leaf, _ in leaves(value, key)):
        yield from (_unknown(leaf, given, variant, known) for leaf, given in leaves(value, key))
    else:
        yield _unknown(key, value, variant, known)


def _unknown(key: str, value: Any, variant: str, known: Sequence[Setting]) -> str:
    new = new_key(key)
    if new and any(f"{entry.key}.".startswith(f"{new}.") for entry in known):
        return f"{key}: renamed to {new}; write it there"
    if owned := _owned(key, known):
        section, owners = owned[0].kinds_of, list(dict.fromkeys(kind for entry in owned for kind in entry.only_for))
        return (
            f"{key}: not a setting of {section} of kind {variant} (it belongs to {listed(owners)}); remove it, "
            f"or replace the whole section with '{section}={{kind: {variant}}}'"
        )
    if any(entry.key == key for entry in known):  # a key with dots, in a file
        nested = "".join(f"{{{part}: " for part in key.split(".")[1:]) + one_line(redact(value, key))
        nested += "}" * key.count(".")
        return f"{key}: a file has sections instead of dots; write {key.partition('.')[0]}: {nested}"
    if hint := answer(key, redact(value, key), known):
        return f"{key}: no such setting; {hint}"
    near = nearest(key, known)
    if isinstance(value, dict):  # a whole section, whose settings may be known elsewhere
        near = listed(
            [entry.key for entry in known if entry.section == near and name_of(entry) in value] or [near or ""]
        )
    return f"{key}: no such setting" + (f"; nearest: {near}" if near else "")
