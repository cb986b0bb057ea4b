"""Write the question to a language model about completions, and read its text as a preference or a score.

Pure; must not know HTTP. Text becomes a verdict exactly or not at all: a number outside the scale is an error.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from actors.errors import UsageError
from actors.foreign.templates import check_judge_template
from actors.judges.config import EndpointJudgeConfig
from actors.judges.http.answers import VERDICTS, is_number
from actors.judges.patterns import AnswerPattern, last_match
from actors.records import Prompt

_REQUEST = """\
<request>
{% if messages %}{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% else %}{{ prompt }}
{% endif %}</request>
"""
_ANSWER = """\
<answer>
{{ completion }}
</answer>
"""

PAIRS_TEMPLATE = f"""\
Compare two answers to the same request. Judge only how well each serves the person who asked: is it right, does it \
do what was asked, is it clear? Length and order do not matter.

{_REQUEST}<answer_a>
{{{{ first }}}}
</answer_a>
<answer_b>
{{{{ second }}}}
</answer_b>

Which answer is better? Reply with exactly one letter: A, B, or C if neither is better."""

SCORE_TEMPLATE = f"""\
Score an answer to a request. Judge only how well it serves the person who asked: is it right, does it do what was \
asked, is it clear? Length does not matter.

{_REQUEST}{_ANSWER}
How good is the answer, from {{{{ low }}}} (of no use) to {{{{ high }}}} (perfect)? Reply with the number alone."""

RUBRIC_TEMPLATE = f"""\
Score an answer to a request by each of these criteria, from {{{{ low }}}} (not met) to {{{{ high }}}} (fully met):

{{% for each in criteria %}}- {{{{ each.name }}}}{{% if each.description %}}: {{{{ each.description }}}}{{% endif %}}
{{% endfor %}}
{_REQUEST}{_ANSWER}
Reply with one JSON object alone that has a number for each criterion: {{% for each in criteria %}}\
"{{{{ each.name }}}}"{{% if not loop.last %}}, {{% endif %}}{{% endfor %}}."""

TEMPLATES = {"pairs": PAIRS_TEMPLATE, "score": SCORE_TEMPLATE, "rubric": RUBRIC_TEMPLATE}
NEEDED = {"pairs": ("first", "second"), "score": ("completion",), "rubric": ("completion",)}
ALLOWED = {"pairs": (), "score": ("low", "high"), "rubric": ("low", "high", "criteria")}

NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?"
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")


class OutOfScaleError(ValueError):
    """The model gave a number outside the scale."""


class Question:
    """The question of one mode."""

    def __init__(self, config: EndpointJudgeConfig) -> None:
        """Compile template and pattern. Raises UsageError if either is invalid."""
        self._config = config
        if config.template is not None:  # before compiling it, which already evaluates constant parts
            names = ["prompt", "answer", *NEEDED[config.mode]]
            check_judge_template(config.template, names, "judging.judge.template")
        self._template = compile_template(config.template or TEMPLATES[config.mode], config.mode)
        self._pattern = AnswerPattern("judging.judge.verdict_pattern", config.verdict_pattern, "([ABC])")
        self._names = [criterion.name for criterion in config.criteria] if config.mode == "rubric" else [config.mode]

    def text(self, prompt: Prompt, shown: Mapping[str, str]) -> str:
        """Fill in the template with `shown`: `first` and `second`, or `completion`. Raises UsageError if it fails."""
        low, high = (int(end) if end == int(end) else end for end in self._config.scale)
        try:
            return self._template.render(
                prompt=prompt.text,
                messages=prompt.metadata.get("messages"),
                tools=prompt.metadata.get("tools"),
                answer=prompt.answer,
                low=low,
                high=high,
                criteria=[criterion.model_dump() for criterion in self._config.criteria],
                **shown,
            )
        except Exception as error:  # a template is foreign code, which may raise anything
            said = f"{type(error).__name__}: {error}"
            raise UsageError(f"judging.judge.template cannot be filled in for prompt '{prompt.id}': {said}") from error

    @property
    def response_format(self) -> dict[str, Any]:
        """The `response_format` of structured outputs: an object with a letter, a score, or one per criterion."""
        low, high = self._config.scale
        number = {"type": "number", "minimum": low, "maximum": high}
        shapes: dict[str, Any] = dict.fromkeys(self._names, number)
        if self._config.mode == "pairs":
            shapes = {"verdict": {"type": "string", "enum": list(VERDICTS)}}
        schema = {"type": "object", "properties": shapes, "required": list(shapes), "additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}

    def letter(self, text: str, *, structured: bool) -> str | None:
        """Return the verdict of a comparison, A, B or C; None without one."""
        found, _ = last_object(text, ["verdict"]) if structured else ({}, 0)
        return _known(found["verdict"] if found else self._pattern.answer(text))

    def score(self, text: str) -> float | None:
        """Return the score, or the criteria's mean by weight; None without one.

        Raises OutOfScaleError for a number outside the scale, and for a rubric's verdict on some of the criteria.
        """
        if self._config.mode == "score":
            found, end = last_object(text, ["score"])
            # The text after the object counts instead: the object may be a quotation.
            value = self._number(text[end:])
            value = _exact(found["score"]) if found and value is None else value
            return None if value is None else self._checked("the score", value)
        marks = last_object(text, self._names)[0] or _lines(text, self._names, self._config.scale[1])
        if not marks:
            return None
        total = 0.0
        for criterion in self._config.criteria:
            value = _exact(marks.get(criterion.name))
            if value is None:
                raise OutOfScaleError(f"no number for the criterion {criterion.name}")
            total += criterion.weight * self._checked(criterion.name, value)
        return total / sum(criterion.weight for criterion in self._config.criteria)

    def _number(self, text: str) -> float | None:
        number, named = self._pattern.last(text) or (None, {})
        value, of = _exact(number), _exact(named.get("of"))
        if of is not None and of != self._config.scale[1]:
            raise OutOfScaleError(f"a score of {of:g} on a scale that ends at {self._config.scale[1]:g}")
        return value

    def _checked(self, name: str, value: float) -> float:
        low, high = self._config.scale
        if not low <= value <= high:
            raise OutOfScaleError(f"{name} is {value:g}, outside the scale {low:g} to {high:g}")
        return value


def compile_template(text: str, mode: str) -> jinja2.Template:
    """Compile the question. Raises UsageError if it is not a template, lacks an answer or uses unknown variables."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        used = jinja2.meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(
            f"judging.judge.template is not a Jinja template: line {error.lineno}: {error.message}"
        ) from error
    needed, allowed = set(NEEDED[mode]), {"prompt", "messages", "answer", *ALLOWED[mode]}
    if not needed <= used <= needed | allowed:
        raise UsageError(
            f"judging.judge.template uses {sorted(used)}; with mode {mode} it must use {' and '.join(NEEDED[mode])}, "
            f"and may use {sorted(allowed)}"
        )
    return template


def last_object(text: str, names: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Find the last JSON object with one of `names`, in any case; return their values and its end in the text.

    The object is the whole text, or has no objects inside. Returns ({}, 0) if there is no such object.
    """
    candidates = [(match[0], match.end()) for match in _FLAT_OBJECT.finditer(text)]
    for candidate, end in ((text, len(text)), *reversed(candidates)):
        try:
            read = json.loads(candidate, parse_int=float)
        except (ValueError, RecursionError):
            continue
        given = {key.strip().casefold(): value for key, value in read.items()} if isinstance(read, dict) else {}
        found = {name: given[name.casefold()] for name in names if name.casefold() in given}
        if found:
            return found, end
    return {}, 0


def _lines(text: str, names: Sequence[str], high: float) -> dict[str, str]:
    """Return the numbers of lines such as `NAME: 7` or `2. NAME: 7/HIGH`, the last number of each name."""
    found: dict[str, str] = {}
    for name in names:
        start, of = rf"(?im)^[^\w\n]*(?:[0-9]+[.)][^\w\n]*)?{re.escape(name)}\b", rf"(?:\s*/\s*{high:g})?"
        number = last_match(re.compile(rf"{start}[^\w\n]*(?<![-+.])({NUMBER}){of}[^\w\n%/]*$"), text)
        if number is not None:
            found[name] = number
    return found


def _exact(value: Any) -> float | None:
    """Return a number of JSON, or of a text that is only a number; else None. A number with too many digits is
    infinite."""
    if isinstance(value, str):
        return float(value) if re.fullmatch(NUMBER, value.strip()) else None
    return float(value) if is_number(value) or value in (float("inf"), -float("inf")) else None


def _known(letter: Any) -> str | None:
    text = letter.strip().upper() if isinstance(letter, str) else ""
    return text if text in VERDICTS else None
