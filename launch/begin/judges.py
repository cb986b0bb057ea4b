"""Turn --judge into settings with reasons: short names for the kinds of judge."""

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.data.config import SHIPPED_PROMPTS
from actors.errors import UsageError
from actors.foreign.documents import read_object
from actors.foreign.text import shown
from launch.begin.lines import Line
from launch.begin.rows import ANSWERS, TESTS, Sample, answer_column, answers_of
from launch.doctor.model_facts import is_hub_name, local_directory, read_model

KINDS = """  verifier             gold answers of a column decide; verifier:pattern, :boxed, :math, :choice say how
  FILE.py:FUNCTION     your own function in a file below the working directory; MODULE:FUNCTION is the same
  reward:MODEL         a reward model, a directory or hub name of a sequence classifier with one label
  preference:MODEL     a model of `offbeat preference`
  served:MODEL@URL     a reward model behind vLLM's pooling runner
  endpoint:MODEL@URL   a language model behind an OpenAI-compatible API that compares answers
  code                 the tests of a column, run on the answer's program
  instructions         IFEval's instructions that a rule can check"""
FOLLOWED = "actors.judges.instructions:followed"
HTTP_SECONDS = 180.0
"""Longest time of one request with its retries, by the defaults of judges behind HTTP."""
_ASKS = {
    "pattern": "\nSolve it step by step. End with a last line of #### and the final answer.",
    "boxed": "\nSolve it step by step. Put the final answer into \\boxed{}.",
    "math": "\nEnd with: The answer is, and the final answer.",
    "choice": "\nEnd with: The answer is, and the letter.",
}
_GIVEN = {"self", "prompt", "prompts", "completions", "completion_ids"}


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge as settings, and what it needs of the data."""

    lines: tuple[Line, ...]
    answer: str | tuple[str, ...] | None = None
    """The column or columns with gold answers."""
    columns: tuple[str, ...] = ()  # further ones that a function reads
    ask: str = ""  # what a prompt must ask for, so that an answer can be found
    loads: bool = False  # whether it loads a model beside the policy
    costly: bool = False  # whether every pair of answers is a request


def read_judge(given: str | None, sample: Sample, answer: str | None) -> Judge:
    """Return the judge that --judge means for these data. Raises UsageError, with the kinds, if it means none."""
    if given is None:
        return _by_data(sample, answer)
    kind, _, rest = given.partition(":")
    read = _READERS.get(kind)
    if read is not None:
        return read(rest, sample, answer)
    if rest and re.fullmatch(r"[\w./\\-]+", kind):
        return _function(kind, rest, sample, answer)
    raise UsageError(f"--judge {given}: no such kind of judge; allowed are\n{KINDS}")


def _by_data(sample: Sample, answer: str | None) -> Judge:
    if sample.source in SHIPPED_PROMPTS:
        why = "a function that comes with Offbeat checks what each prompt asks of the answer's form"
        return Judge((Line("judging.judge.kind", "function", why), Line("judging.judge.path", FOLLOWED)), "checks")
    if sample.rows and answer_column(sample, answer) is not None:
        return _verifier("", sample, answer)
    raise UsageError(
        f"no --judge is given, and --data {sample.source} has no column with gold answers ({', '.join(ANSWERS)}); pass "
        f"--judge with one of\n{KINDS}"
    )


def _verifier(form: str, sample: Sample, answer: str | None) -> Judge:
    if form and form not in _ASKS:
        raise UsageError(f"--judge verifier:{form}: no such form of answers; allowed: {', '.join(_ASKS)}")
    column = answer_column(sample, answer)
    if column is None and sample.rows:
        raise UsageError(
            f"--judge verifier needs gold answers, and --data {sample.source} has no column of them "
            f"({', '.join(ANSWERS)}); it has: {', '.join(sample.columns)}; pass --answer COLUMN"
        )
    column = column or "answer"
    found, why = _form(answers_of(sample, column))
    chosen = form or found
    lines = [Line("judging.judge.kind", "verifier", f"1 for the right answer, 0 for another: column {column}")]
    if chosen != "pattern":
        lines.append(Line("judging.judge.format", chosen, "" if form else why))
    return Judge(tuple(lines), column, ask=_ASKS[chosen])


def _form(answers: Sequence[str]) -> tuple[str, str]:
    """Return in which form answers are given, and how that shows."""
    if not answers or all("####" in each for each in answers):
        return "pattern", "the answers end with ####"
    if all(r"\boxed" in each for each in answers):
        return "boxed", r"the answers are in \boxed{}"
    if all(re.fullmatch(r"\(?[A-J]\)?\.?", each.strip()) for each in answers):
        return "choice", "the answers are single letters"
    return "math", "the answers stand alone: an answer's last box counts, or what follows `the answer is`"


def _code(rest: str, sample: Sample, answer: str | None) -> Judge:
    column = sample.column(answer, TESTS, "--answer") if sample.rows else answer
    if column is None and sample.rows:
        raise UsageError(
            f"--judge code needs tests, and --data {sample.source} has no column of them ({', '.join(TESTS)}); it has: "
            f"{', '.join(sample.columns)}; pass --answer COLUMN"
        )
    ask = "\nWrite a Python program in one code block."
    return Judge(
        (Line("judging.judge.kind", "code", f"the share of the tests that pass: column {column or TESTS[0]}"),),
        column or TESTS[0],
        ask=ask,
    )


def _instructions(rest: str, sample: Sample, answer: str | None) -> Judge:
    columns = ("instruction_id_list", "kwargs")
    missing = [name for name in columns if sample.rows and name not in sample.columns]
    if missing:
        raise UsageError(
            f"--judge instructions reads IFEval's columns {' and '.join(columns)}, and --data {sample.source} has no "
            f"{' and no '.join(missing)}; it has: {', '.join(sample.columns)}; use a judge of another kind"
        )
    return Judge((Line("judging.judge.kind", "instructions", "the share of the instructions that are kept"),), columns)


def _function(place: str, name: str, sample: Sample, answer: str | None) -> Judge:
    """Read a function's parameters from its file, without importing it: data that it names have to be read."""
    module, file = _module(place, name)
    parameters = [] if file is None else _parameters(file, name)
    named = [each for each in parameters if each not in _GIVEN and each in sample.columns]
    gold = answer_column(sample, answer) if answer is not None or "answer" in named else None
    columns = tuple(each for each in named if each not in ("answer", gold))
    why = "your function, called once before the run starts; higher is better"
    return Judge(
        (Line("judging.judge.kind", "function", why), Line("judging.judge.path", f"{module}:{name}")), gold, columns
    )


def _named_function(rest: str, sample: Sample, answer: str | None) -> Judge:
    place, _, name = rest.partition(":")
    if not place or not name:
        raise UsageError("--judge function names no function; write FILE.py:FUNCTION or MODULE:FUNCTION")
    return _function(place, name, sample, answer)


def _module(place: str, name: str) -> tuple[str, Path | None]:
    """Return the module of a file or dotted name, and its file if it is below the working directory."""
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise UsageError(
                f"--judge {place}:{name}: {file} does not exist (looked in {Path.cwd()}); correct the path"
            )
        try:
            parts = file.resolve().relative_to(Path.cwd().resolve()).with_suffix("").parts
        except ValueError:
            raise UsageError(
                f"--judge {place}:{name}: {file} is not below the working directory {Path.cwd()}, where a run imports "
                "from; put it there, or its directory on PYTHONPATH and give MODULE:FUNCTION"
            ) from None
        if not all(part.isidentifier() for part in parts):
            raise UsageError(
                f"--judge {place}:{name}: {file} is no name that Python imports; rename it to letters and _"
            )
        return ".".join(parts), file
    if not all(part.isidentifier() for part in [*place.split("."), name]):
        raise UsageError(f"--judge {place}:{name}: no such kind of judge; allowed are\n{KINDS}")
    file = Path(*place.split(".")).with_suffix(".py")
    return place, file if file.is_file() else None


def _parameters(file: Path, name: str) -> list[str]:
    """Return the names of a function's parameters. Raises UsageError if its file has no such function."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"--judge {file}:{name}: the file cannot be read as Python: {error}; correct it") from None
    targets = [target for node in tree.body for target in getattr(node, "targets", [])]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    functions: dict[str, Any] = {
        node.name: getattr(node, "args", None) for node in tree.body if isinstance(node, kinds)
    }
    imported = [alias.asname or alias.name for node in tree.body for alias in getattr(node, "names", [])]
    if name not in functions and name not in (*names, *imported, *(["*"] if "*" in imported else [])):
        raise UsageError(
            f"--judge {file}:{name}: the file has no function {name}; it has: {', '.join(functions) or 'none'}"
        )
    arguments = functions.get(name)
    return [] if arguments is None else [each.arg for each in (*arguments.args, *arguments.kwonlyargs)]


def _model(kind: str, spelling: str) -> Callable[[str, Sample, str | None], Judge]:
    def read(path: str, sample: Sample, answer: str | None) -> Judge:
        if not path:
            raise UsageError(f"--judge {spelling}: names no model; write {spelling}:DIRECTORY or {spelling}:HUB_NAME")
        try:
            facts = read_model(path)
        except ValueError as error:
            raise UsageError(f"--judge {spelling}:{path}: {error}; give a Hugging Face model's directory") from None
        if facts is None and not is_hub_name(path):
            raise UsageError(
                f"--judge {spelling}:{path}: the directory does not exist (looked in {Path.cwd()}); correct the path"
            )
        directory = local_directory(path)
        if directory is not None and (problem := _unfit(kind, directory)):
            raise UsageError(f"--judge {spelling}:{path}: {problem}")
        why = "higher scores are better" if kind == "reward_model" else "compares two answers at a time"
        return Judge((Line("judging.judge.kind", kind, why), Line("judging.judge.path", path)), loads=True)

    return read


def _unfit(kind: str, directory: Path) -> str | None:
    """Say why a model of this machine cannot be a judge of this kind, by its small files alone; None if it may."""
    if kind == "preference_model":
        remedy = "give the directory final/ of a run of `offbeat preference`, or reward:MODEL for a model that scores"
        return None if (directory / "preference.json").is_file() else f"it has no preference.json; {remedy}"
    config = read_object(directory / "config.json")
    names, labels = config.get("architectures"), config.get("id2label")
    named = str(names[0]) if isinstance(names, list) and names else ""
    remedy = "give a sequence classifier with exactly 1 label"
    if named and not named.endswith("ForSequenceClassification"):
        return f"its config.json names the architecture {shown(named, 60)}, which gives no scores; {remedy}"
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)  # as transformers counts them
    return None if count == 1 else f"its config.json has {shown(count, 20)} labels; {remedy}"


def _http(kind: str) -> Callable[[str, Sample, str | None], Judge]:
    def read(rest: str, sample: Sample, answer: str | None) -> Judge:
        model, _, url = rest.partition("@")
        if not re.match(r"https?://\S+$", url) or not model:
            example = "http://127.0.0.1:8000" + ("/v1" if kind == "endpoint" else "")
            raise UsageError(
                f"--judge {kind}:{rest}: needs the model's name on the server and the address; write for example "
                f"{kind}:my-model@{example}"
            )
        lines = (
            Line("judging.judge.kind", kind),
            Line("judging.judge.url", url),
            Line("judging.judge.model", model),
            Line("judging.timeout_seconds", HTTP_SECONDS, "one request with all its retries may take that long"),
        )
        return Judge(lines, costly=kind == "endpoint")

    return read


def _not_here(what: str) -> Callable[[str, Sample, str | None], Judge]:
    def read(rest: str, sample: Sample, answer: str | None) -> Judge:
        raise UsageError(what)

    return read


_WORLD = (
    "belongs to the embedded world, whose prompts it alone can judge; run `offbeat train embedded`, or choose another"
)
_READERS: dict[str, Callable[[str, Sample, str | None], Judge]] = {
    "verifier": _verifier,
    "code": _code,
    "instructions": _instructions,
    "reward": _model("reward_model", "reward"),
    "reward_model": _model("reward_model", "reward_model"),
    "preference": _model("preference_model", "preference"),
    "preference_model": _model("preference_model", "preference_model"),
    "served": _http("served"),
    "endpoint": _http("endpoint"),
    "ensemble": _not_here(
        "--judge ensemble has members of its own; begin with one of them, and add them as in docs/judges.md"
    ),
    "gold": _not_here(f"--judge gold {_WORLD}"),
    "bradley_terry": _not_here(f"--judge bradley_terry {_WORLD}"),
    "function": _named_function,
}
