"""What a text names exists: commands, options, make targets, settings, modules and files.

The texts are the documentation, every string literal (messages, help, docstrings) and comment of the product, and
the comments of presets.
"""

from __future__ import annotations

import ast
import io
import re
import shlex
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import typer

from actors.errors import UsageError
from launch.cli import app
from launch.data.config import file_and_overrides
from launch.settings.fields import settings
from launch.settings.loading import load_config, preset_names
from launch.settings.options import with_resume_values
from launch.settings.renamed import RENAMED
from launch.settings.verbs import SWEEP, VERBS
from launch.sweep.config import load_sweep
from launch.sweep.plan import plan_rows
from tests.house import ROOT, TOPS, House, assert_only

HOUSE = House.at(ROOT)
FOLDERS = (*TOPS, "tests", "benchmarks", "examples", "docs")
PAGES = sorted(page for folder in (ROOT, ROOT / "docs") for page in folder.glob("*.md"))
SETTINGS = {verb: {setting.key for setting in settings(VERBS[verb].model)} for verb in VERBS}
KEYS = set().union(*SETTINGS.values())
SECTIONS = {".".join(key.split(".")[:depth]) for key in KEYS for depth in range(1, key.count(".") + 1)}
OPEN = {each.key for verb in VERBS for each in settings(VERBS[verb].model) if each.allowed.startswith("mapping")}
"""Settings below which other programs' names stand."""
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

FOREIGN_OPTIONS = {"--shm-size", "--strict", "--no-deps", "--max-model-len", "--served-model-name"}
FOREIGN_OPTIONS |= {"--signal", "--open-mode"}  # of sbatch
"""Of other programs, in texts that name them without the command."""
NAMES_OF_OTHERS = {"model.layers", "my_judges.py", "FILE.py", "job.sbatch"}
"""Names of tensors, and of files that the reader writes."""
WRITTEN = {
    name for page in PAGES for name in re.findall(r"^```python\n# ([\w/]+\.py)$", page.read_text("utf-8"), re.MULTILINE)
}
"""Files that a page has its reader write, by path."""
OLD_NAMES = {f"launch/settings/renamed.py: {name}" for name in RENAMED if "." in name}
"""The table of renamed settings is the one place that names them."""

FENCE = re.compile(r"^```(\w*).*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
COMMAND_LINE = re.compile(r"^ {4,}(?:[A-Z_]+=\S+ )*(offbeat|make) ((?:.*\\\n)*.*)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w/-])--([a-z]+(?:-[a-z]+)*)(?![\w-])")
NAME = re.compile(r"(?<![\w./\\~-])([a-z_]+(?:\.[A-Za-z_]\w*)+)(?![\w(/-])")
FILE_ENDING = re.compile(r"\.(?:py|md|yaml|json|jsonl|safetensors|svg|html|parquet|sbatch|lock|toml|txt|index)$")
PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/(?:[\w./-]*\.(?:py|md|yaml|sbatch|svg)\b|[\w./-]*/))")
FILE_NAME = re.compile(r"(?<![\w./*-])(\w+\.(?:py|sbatch))\b")
PLACEHOLDER = re.compile(r"\.\.\.|…|^\[?[A-Z]+(?:=[A-Z]+)?\]?$")


@dataclass(frozen=True)
class Text:
    """A page of the documentation, a string literal or a comment. `…` stands for what an f-string fills in."""

    place: str
    content: str
    is_page: bool = False

    @property
    def is_argument(self) -> bool:
        """One word for a program, as `--rm`, and no text for a reader."""
        return not self.is_page and " " not in self.content.strip()

    @property
    def without_fences(self) -> str:
        return FENCE.sub("", self.content) if self.is_page else self.content


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string literal, docstrings included."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside.update(map(id, node.values))
            parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@cache
def texts() -> list[Text]:
    pages = [Text(page.relative_to(ROOT).as_posix(), page.read_text("utf-8"), is_page=True) for page in PAGES]
    presets = [
        Text(path.relative_to(ROOT).as_posix(), line.partition("#")[2])
        for path in (ROOT / "launch").rglob("*.yaml")
        for line in path.read_text("utf-8").splitlines()
    ]
    return [*pages, *presets] + [
        Text(HOUSE.paths[name].relative_to(ROOT).as_posix(), text)
        for name, tree in HOUSE.trees.items()
        for _, text in [*literals(tree), *comments(HOUSE.paths[name].read_text("utf-8"))]
    ]


# ---------------------------------------------------------------- commands


@cache
def commands() -> dict[str, Any]:
    """Every verb's command; those below `submit` by two words."""
    group = typer.main.get_command(app)
    return dict(group.commands) | {f"submit {name}": each for name, each in group.commands["submit"].commands.items()}


@cache
def options(verb: str | None = None) -> set[str]:
    """Options of one verb; or of all, and of `offbeat` itself."""
    if verb is None:
        return {"--debug", "--version"}.union(*map(options, commands()))
    return {"--help", *(name for parameter in commands()[verb].params for name in parameter.opts)}


@cache
def options_of_benchmarks() -> set[str]:
    """Of the programs below benchmarks/, as their sources declare them."""
    sources = [path.read_text() for path in (ROOT / "benchmarks").rglob("*.py")]
    return {option for source in sources for option in re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", source)}


def named_commands(text: Text) -> Iterator[tuple[list[str], bool]]:
    """Words of each command of ours, and whether it is meant to be run as it stands, on a line of its own."""
    for code in INLINE.findall(text.without_fences):
        if re.match(r"(offbeat|make) ", code):
            yield code.split(), False
    if text.is_page:
        fenced = "\n".join(f"    {line}" for _, code in FENCE.findall(text.content) for line in code.splitlines())
        for program, rest in COMMAND_LINE.findall(f"{text.without_fences}\n{fenced}"):
            words = shlex.split(rest.replace("\\\n", " "), comments=True)
            yield [program, *words[: words.index(">") if ">" in words else None]], True


def wrong_commands(text: Text) -> Iterator[str]:
    for (program, *words), whole in named_commands(text):
        problems = _wrong_targets(words) if program == "make" else _wrong_words(words, whole)
        yield from (f"{' '.join([program, *words])}: {problem}" for problem in problems)


def _wrong_targets(words: list[str]) -> Iterator[str]:
    yield from (f"no target {word}" for word in words[:1] if word not in TARGETS)


def _wrong_words(words: list[str], whole: bool) -> Iterator[str]:
    whole = whole and "--help" not in words
    words = [word for word in words if word not in ("--debug", "--help")]
    verb = " ".join(words[: 2 if words[:1] == ["submit"] else 1])
    given = [word for word in words[len(verb.split()) :] if word == "RUN" or not PLACEHOLDER.search(word)]
    if verb in ("", "VERB", "…", "--version"):
        yield from (f"no option {word}" for word in given if word.startswith("--") and word not in options())
    elif verb not in commands():
        yield f"no verb {verb}"
    elif whole:
        yield from _wrong_arguments(verb, given)
    else:
        found = (word for word in given if word.startswith("--") and word not in options(verb))
        yield from (f"no option {word}" for word in found)
        yield from (f"no setting {key}" for key in _keys(given) if key not in KEYS | SECTIONS)


def _wrong_arguments(verb: str, words: list[str]) -> Iterator[str]:
    """Parsed by the command line itself; on a preset, the settings are loaded too."""
    try:
        parameters = commands()[verb].make_context(verb, list(with_resume_values(words))).params
    except typer.TyperException as error:
        yield error.format_message()
        return
    config, overrides = parameters.get("config"), parameters.get("overrides") or parameters.get("settings") or []
    if verb == "sweep":
        yield from _wrong_sweep(parameters["file"], overrides)
        return
    if verb == "data":
        config, overrides = file_and_overrides(list(parameters["arguments"] or []))
    configured = verb if verb in VERBS else parameters.get("verb", "train")
    yield from (f"no setting {key}" for key in _keys(overrides) if key not in SETTINGS[configured] | SECTIONS)
    if config in preset_names(VERBS[configured]):
        try:
            load_config(config, overrides, VERBS[configured])
        except UsageError as error:
            yield str(error)


def _wrong_sweep(file: str, overrides: list[str]) -> Iterator[str]:
    """Its overrides are its own settings, or those of its runs."""
    unknown = [key for key in _keys(overrides) if key not in SETTINGS["sweep"] | SETTINGS["train"]]
    yield from (f"no setting {key}" for key in unknown)
    if file in preset_names(SWEEP) and not unknown:
        try:
            plan_rows(load_sweep(file, overrides))
        except UsageError as error:
            yield str(error)


def _keys(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if "=" in word and not word.startswith("-")]


def wrong_options(text: Text) -> Iterator[str]:
    """Options that no command of ours has, outside of the commands of other programs."""
    if not text.is_argument:
        content = INLINE.sub(lambda code: code[1] if re.match(r"offbeat |--", code[1]) else "", text.without_fences)
        content = re.sub(r"^ {4,}.*$", "", content, flags=re.MULTILINE) if text.is_page else content
        found = {f"--{name}" for name in OPTION.findall(content)}
        yield from found - options() - (options_of_benchmarks() if text.is_page else set()) - FOREIGN_OPTIONS


# ---------------------------------------------------------------- settings, modules and files


@cache
def definitions(module: str) -> dict[str, set[str]]:
    """The names bound in a module of ours; of classes, also the names bound in them."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(HOUSE.trees[module]):
        members = (
            {name for child in ast.walk(node) for name in _bound(child)} if isinstance(node, ast.ClassDef) else set()
        )
        for name in _bound(node):
            found[name] = found.get(name, set()) | members
    return found


def _bound(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.id if isinstance(node, ast.Name) else node.attr]
    return []


def is_code(name: str) -> bool:
    """A module of ours, or what is defined in one; `checkpoints.begin` names the module by its last part alone."""
    first, *rest = name.split(".")
    if f"{name.replace('.', '/')}.py" in WRITTEN:
        return True
    if first not in FOLDERS:
        return any(module.endswith(f".{first}") and rest[0] in definitions(module) for module in HOUSE.paths)
    if first not in TOPS:
        path = ROOT.joinpath(first, *rest)
        return path.is_dir() or path.with_suffix(".py").is_file()
    module = first
    while rest and f"{module}.{rest[0]}" in HOUSE.paths:
        module = f"{module}.{rest.pop(0)}"
    known = definitions(module)
    return not rest or (rest[0] in known and (not rest[1:] or rest[1] in known[rest[0]]))


def wrong_names(text: Text) -> Iterator[str]:
    """Dotted names that begin like a setting or a module and are neither. An argument may be a prefix of settings."""
    for name in NAME.findall(text.content):
        known = name in KEYS | SECTIONS | NAMES_OF_OTHERS or FILE_ENDING.search(name)
        known = known or any(name.startswith(f"{key}.") for key in OPEN)
        known = known or (text.is_argument and any(key.startswith(name) for key in KEYS))
        if name.partition(".")[0] in (*SECTIONS, *FOLDERS) and not known and not is_code(name):
            yield name


@cache
def file_names() -> set[str]:
    return {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*")}


def wrong_files(text: Text) -> Iterator[str]:
    """Paths below our folders, and names of Python files anywhere."""
    yield from (path for path in PATH.findall(text.content) if not (ROOT / path).exists() and path not in WRITTEN)
    yield from set(FILE_NAME.findall(text.content)) - file_names() - NAMES_OF_OTHERS - WRITTEN


RULES = [wrong_commands, wrong_options, wrong_names, wrong_files]


def test_whatever_a_text_names_exists():
    assert_only(OLD_NAMES, {f"{text.place}: {wrong}" for text in texts() for rule in RULES for wrong in rule(text)})


@pytest.mark.parametrize(
    ("rule", "content", "wrong"),
    [
        (
            wrong_commands,
            "`offbeat trian run.yaml`, `make tset`",
            ["offbeat trian run.yaml: no verb trian", "make tset: no target tset"],
        ),
        (wrong_commands, "`offbeat dpo --loss ipo`", ["offbeat dpo --loss ipo: no option --loss"]),
        (wrong_commands, "    offbeat demo learner.rank=2", ["offbeat demo learner.rank=2: no setting learner.rank"]),
        (
            wrong_commands,
            "    offbeat replay RUN --lost ipo",
            ["offbeat replay RUN --lost ipo: No such option: --lost"],
        ),
        (wrong_commands, "```\noffbeat train embedded updates=x\n```", ["updates: given 'x'; allowed: integer >= 1"]),
        (wrong_commands, "`offbeat VERB --help`, `offbeat submit ray`\n\n    offbeat train run.yaml KEY=VALUE...", []),
        (wrong_commands, "    offbeat sweep anchor update=5", ["offbeat sweep anchor update=5: no setting update"]),
        (wrong_commands, "`offbeat sweep FILE`\n\n    offbeat sweep anchor updates=5 seeds=[0] --parallel 2", []),
        (wrong_options, "go on with --resume, or `--outptu DIR`, not `docker run --rm`", ["--outptu"]),
        (wrong_names, "write for example learner.learning_rate=1e-6, `replay.order: ready`", ["learner.learning_rate"]),
        (wrong_names, "`learner.engine.UpdateStats`, `learner.records.UpdateStats`", ["learner.engine.UpdateStats"]),
        (wrong_names, "`checkpoints.begin`, `checkpoints.start`, `model.safetensors`", ["checkpoints.start"]),
        (wrong_files, "`launch/doctor.py`, `launch/doctor/`, `docs/no.md`", ["launch/doctor.py", "docs/no.md"]),
        (wrong_files, "`admission.py` and `submission.py`", ["submission.py"]),
    ],
)
def test_what_does_not_exist_is_found(rule: Callable[[Text], Iterator[str]], content: str, wrong: list[str]):
    found = list(rule(Text("page", content, is_page=True)))
    assert len(found) == len(wrong)
    assert all(part in each for part, each in zip(wrong, found, strict=True))
