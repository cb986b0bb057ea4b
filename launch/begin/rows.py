"""The data that a configuration reads: which column holds the prompt, which the answer, and how long both are."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from actors.data.config import SHIPPED_PROMPTS, PromptConfig
from actors.data.formats import SUFFIXES
from actors.data.rows import MalformedRowError, RowSource, rows_from
from actors.data.text import chat_or_value
from actors.errors import UsageError
from actors.settings import WORLD
from launch.begin.policy import Policy, may_be_on_the_hub

MOST_ROWS = 1_000
"""Rows that are read; most data sets are alike from there on."""
CHARACTERS = 3
"""Fewest characters of a token, if no tokenizer can count."""
NO_LIMIT = 1 << 30
PROMPTS = ("prompt", "question", "instruction", "messages", "problem", "query")
"""Names of columns that hold prompts."""
LIKELY_PROMPTS = ("input", "text", "conversations", "conversation", "content")
"""And those that may, where there is none of the former."""
ANSWERS = ("answer", "answers", "final_answer", "ground_truth", "gold", "target", "label", "solution")
TESTS = ("test_list", "tests", "test", "test_cases", "unit_tests")


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of a source, and their columns in order. Without rows the source could not be read."""

    source: str
    columns: tuple[str, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    whole: bool = False  # whether these are all rows
    notes: tuple[str, ...] = ()

    def column(self, wanted: str | None, names: Sequence[str], option: str, more: Sequence[str] = ()) -> str | None:
        """Return the column that an option names, or the only one of `names`, else of `more`; None if there is none.

        Raises UsageError if the option's is not there, or several are.
        """
        if not self.rows:
            return wanted
        listed = ", ".join(self.columns)
        if wanted is not None:
            if wanted not in self.columns:
                raise UsageError(f"{option} {wanted} is no column of --data {self.source}; choose one of: {listed}")
            return wanted
        for group in (names, more):
            found = [name for name in group if name in self.columns]
            if len(found) > 1:
                raise UsageError(
                    f"--data {self.source} has several columns that {option} could mean: {', '.join(found)}; pass "
                    f"{option} {found[0]}, or another of them"
                )
            if found:
                return found[0]
        return None


@dataclass(frozen=True, slots=True)
class Lengths:
    """The longest of the rows that were read (tokens), and how many rows can be used."""

    prompt: int
    answer: int
    good: int
    malformed: int


def read_sample(source: str) -> Sample:
    """Read the first rows of a source. Raises UsageError if it is missing, of an unknown format, or empty.

    A hub data set that is not here and cannot be reached gives an empty sample with a note.
    """
    if source == WORLD:
        raise UsageError(f"--data {WORLD} belongs to the embedded world; run `offbeat train embedded`, or give a file")
    table = RowSource(str(SHIPPED_PROMPTS.get(source, source)), "train", "--data ", _all_columns)
    try:
        read = list(islice(rows_from(table), MOST_ROWS + 1))
    except UsageError:
        named = "/" in source and may_be_on_the_hub(source) and not source.endswith(SUFFIXES)
        if not named or source in SHIPPED_PROMPTS:
            raise
        said = f"{source} is not on this machine and cannot be loaded: its columns and lengths are guesses"
        return Sample(source, notes=(said,))
    if not read:
        raise UsageError(f"--data {source} holds no rows; give a file with at least one")
    rows = tuple(row.columns for row in read[:MOST_ROWS] if row.problem is None)
    if not rows:
        raise UsageError(f"--data {source}: {read[0].place}: {read[0].problem}; correct the rows, or give another file")
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Sample(source, columns, rows, len(read) <= MOST_ROWS)


def prompt_column(sample: Sample, wanted: str | None) -> str:
    """Return the column with the prompts. Raises UsageError if there is none, or several may be."""
    found = sample.column(wanted, PROMPTS, "--prompt", LIKELY_PROMPTS)
    if found is None and sample.rows:
        raise UsageError(
            f"--data {sample.source} has no column that is known to hold prompts ({', '.join(PROMPTS)}); it has: "
            f"{', '.join(sample.columns)}; pass --prompt COLUMN"
        )
    return found or "prompt"


def answer_column(sample: Sample, wanted: str | None, names: Sequence[str] = ANSWERS) -> str | None:
    """Return the column with gold answers, `answer` first; None if there is none. Raises UsageError as `column`."""
    if wanted is None and "answer" in names and "answer" in sample.columns:
        return "answer"
    return sample.column(wanted, names, "--answer")


def is_chat(sample: Sample, column: str) -> bool:
    """Return whether prompts are chat messages, not texts."""
    return any(isinstance(_chat(row.get(column)), list) for row in sample.rows)


def answers_of(sample: Sample, column: str) -> list[str]:
    """Return the gold answers that are texts or numbers, as texts."""
    values = (row.get(column) for row in sample.rows)
    return [str(value) for value in values if isinstance(value, str | int | float) and not isinstance(value, bool)]


def measure(sample: Sample, config: PromptConfig, policy: Policy) -> Lengths:
    """Count the tokens of what was read, as a run does; guess them from characters without a tokenizer.

    Raises UsageError if no row is left, with what is wrong with the first.
    """
    answers = answers_of(sample, config.answer_field) if isinstance(config.answer_field, str) else []
    if policy.tokenizer is None:
        texts = [str(row.get(config.prompt_field, "")) for row in sample.rows]
        return Lengths(_guess(texts) + len(config.template) // CHARACTERS, _guess(answers), len(texts), 0)
    from actors.data.batches import Row
    from actors.data.text import encoded
    from actors.data.tokenised.parsing import tokenise

    rows = [Row(str(number), f"row {number}", columns) for number, columns in enumerate(sample.rows, start=1)]
    part = tokenise(rows, config.model_copy(update={"max_prompt_tokens": NO_LIMIT}), policy.tokenizer)
    lengths = [len(ids) for ids in part.prompts.column("token_ids")]
    if not lengths and part.problems:
        raise UsageError(
            f"--data {sample.source}: no row can be used as a prompt; the first: {part.problems[0]}; correct the rows, "
            "or pass --prompt with another column"
        )
    longest = max(map(len, encoded(answers, policy.tokenizer, add_special_tokens=False)), default=0)
    return Lengths(max(lengths, default=0), longest, len(lengths), len(part.problems))


def _chat(value: Any) -> Any:
    with suppress(MalformedRowError):  # a run says so of the row
        return chat_or_value(value, "")
    return value


def _all_columns(names: Sequence[str], place: str) -> list[str]:
    return list(names)


def _guess(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0) // CHARACTERS
