"""Convert public layouts of preferences to the columns of `preference_layouts.py`. The columns identify the layout.

Pure: columns in, columns of one or more pairs out. Must not know files or tokenizers.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from typing import Any, Literal

RankedPairs = Literal["all", "best_worst"]
Columns = Mapping[str, Any]


class FormError(Exception):
    """A row has the columns of a layout, but a value that the layout does not allow. The message says which."""


def pairs_of(columns: Columns, ranked_pairs: RankedPairs = "all") -> list[Columns]:
    """Return the pairs of a row; the row itself if it has no layout of this module. Raises FormError.

    Ranked responses give every pair that differs (`all`), or only the best with the worst.
    """
    given = {name: _as_messages(value, name) for name, value in columns.items() if value is not None}
    form = next((form for form in FORMS if form <= given.keys()), None)
    if form is None or ({"chosen", "rejected"} <= given.keys() and ("prompt" in given or form != SHAREGPT)):
        return [given]
    pairs: list[Columns] = [
        {**{name: given[name] for name in OPTIONAL if name in given}, **pair} for pair in FORMS[form](given)
    ]
    if not pairs:
        raise FormError("all its responses are ranked equally: no pair")
    return pairs if ranked_pairs == "all" else pairs[:1]


class Halves:
    """Rows of KTO's layout (`prompt`, `completion`, `label`) that wait for their other half.

    Two rows with the same prompt and different labels make a pair.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, bool], deque[tuple[Any, str]]] = {}

    @staticmethod
    def holds(columns: Columns) -> bool:
        """Return whether a row has the layout."""
        return all(columns.get(name) is not None for name in KTO) and "chosen" not in columns

    def add(self, columns: Columns, place: str) -> list[Columns]:
        """Return the pair that a row completes, in a list; empty if the row has to wait. Raises FormError."""
        given = {name: _as_messages(value, name) for name, value in columns.items() if value is not None}
        wanted = _value(given, "label", {True: True, False: False})
        try:
            prompt = json.dumps([given["prompt"], given.get("system"), given.get("tools")])
        except (TypeError, ValueError, RecursionError) as error:
            raise FormError(f"'prompt' cannot be compared: {error}") from error
        others = self._waiting.get((prompt, not wanted))
        if not others:
            self._waiting.setdefault((prompt, wanted), deque()).append((given["completion"], place))
            return []
        pair = _pair(given["prompt"], given["completion"], others.popleft()[0], wanted)
        return [{**{name: given[name] for name in ("system", "tools") if name in given}, **pair}]

    def left(self) -> Iterator[str]:
        """Yield the places of rows whose other half never came."""
        return (place for halves in self._waiting.values() for _, place in halves)


def _as_messages(value: Any, name: str) -> Any:
    turns = isinstance(value, list) and any(isinstance(turn, dict) and "from" in turn for turn in value)
    return messages_of(value, name) if turns else value


def columns_for(names: Sequence[str]) -> list[str] | None:
    """Return the columns of the layout that the columns `names` form; None if they form no layout here."""
    form = next((form for form in (*FORMS, KTO) if form <= set(names)), None)
    return None if form is None else [name for name in (*form, *OPTIONAL) if name in names]


def _pair(prompt: Any, first: Any, second: Any, first_preferred: bool | None) -> Columns:
    """Return one pair; a tie (None) has the probability 1/2."""
    chosen, rejected = (second, first) if first_preferred is False else (first, second)
    tie = {"preference": "tie", "probability": 0.5} if first_preferred is None else {}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **tie}


def _value(given: Columns, name: str, allowed: Mapping[Any, Any]) -> Any:
    """Return the meaning of a column's value. Raises FormError if the value is not in `allowed`."""
    for value, meaning in allowed.items():
        if given[name] == value or (isinstance(value, int) and given[name] == str(value)):
            return meaning
    shown = repr(given[name][:30]) if isinstance(given[name], str) else f"a value of type {type(given[name]).__name__}"
    raise FormError(f"'{name}' is {shown}; allowed are {', '.join(map(repr, allowed))}")


def _sharegpt(given: Columns) -> Iterator[Columns]:
    """Read ShareGPT: a conversation, and its next turn as a turn, a list of one turn, or a text."""
    conversation = given["conversations"]
    if not isinstance(conversation, list):
        raise FormError(f"'conversations' is of type {type(conversation).__name__}, not a list of turns")
    answers = [messages_of([given[name]], name) if isinstance(given[name], dict) else given[name]
               for name in ("chosen", "rejected")]  # fmt: skip
    if not isinstance(answers[0], str | list):
        raise FormError(f"'chosen' is of type {type(answers[0]).__name__}, not a turn, a list of turns or a text")
    whole = "\n\nAssistant:" in answers[0] if isinstance(answers[0], str) else len(answers[0]) > 1
    if whole:  # conversations or transcripts that hold the prompt themselves
        yield {"chosen": answers[0], "rejected": answers[1]}
    else:
        yield _pair(conversation, answers[0], answers[1], first_preferred=True)


def messages_of(turns: Any, name: str) -> list[dict[str, Any]]:
    """Return ShareGPT's turns, `from` and `value`, as chat messages. Raises FormError."""
    if not isinstance(turns, list):
        raise FormError(f"'{name}' is of type {type(turns).__name__}, not a list of turns with 'from' and 'value'")
    messages = []
    for number, turn in enumerate(turns):
        if isinstance(turn, dict) and {"role", "content"} <= turn.keys():
            messages.append(turn)
            continue
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise FormError(f"{name}[{number}] is no turn: an object with the strings 'from' and 'value'")
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise FormError(f"{name}[{number}] is from {str(speaker)[:30]!r}; allowed are {', '.join(SPEAKERS)}")
        messages.append({"role": SPEAKERS[speaker], "content": turn["value"]})
    return messages


def _pku(given: Columns) -> Iterator[Columns]:
    """Read PKU-SafeRLHF: `better_response_id` names the more helpful response."""
    first = _value(given, "better_response_id", {0: True, 1: False})
    yield _pair(given["prompt"], given["response_0"], given["response_1"], first)


def _shp(given: Columns) -> Iterator[Columns]:
    """Read SHP: `labels` is 1 if A has the higher score."""
    first = _value(given, "labels", {1: True, 0: False})
    yield _pair(given["history"], given["human_ref_A"], given["human_ref_B"], first)


def _arena(given: Columns) -> Iterator[Columns]:
    """Read Chatbot Arena: two whole conversations, which must share all but the last answer."""
    winners = {"model_a": True, "model_b": False, "tie": None, "tie (bothbad)": None}
    pair = _pair(None, given["conversation_a"], given["conversation_b"], _value(given, "winner", winners))
    yield {name: value for name, value in pair.items() if name != "prompt"}


def _ranked(given: Columns) -> Iterator[Columns]:
    """Yield every pair of K responses whose ranks (1 is best) or scores (higher is better) differ."""
    name = "ranks" if "ranks" in given else "scores"
    responses, values = given["responses"], given[name]
    if not isinstance(responses, list) or not isinstance(values, list) or len(responses) != len(values):
        raise FormError(f"'responses' and '{name}' are not two lists of one length")
    if any(isinstance(value, bool) or not isinstance(value, int | float) or value != value for value in values):
        raise FormError(f"'{name}' holds a value that is no number")
    yield from _by_value(given["prompt"], responses, [-value for value in values] if name == "ranks" else values)


def _answers(given: Columns) -> Iterator[Columns]:
    """Read Nectar (`answer`, `rank`) and UltraFeedback (`response`, `overall_score`): a list of objects."""
    nectar = "answers" in given
    name, text, value = ("answers", "answer", "rank") if nectar else ("completions", "response", "overall_score")
    prompt = given["prompt" if nectar else "instruction"]
    items = given[name]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise FormError(f"'{name}' is no list of objects with '{text}' and '{value}'")
    values = [item.get(value) for item in items]
    yield from _ranked({"prompt": prompt, "responses": [item.get(text) for item in items],
                        "ranks" if nectar else "scores": values})  # fmt: skip


def _by_value(prompt: Any, responses: Sequence[Any], values: Sequence[float]) -> Iterator[Columns]:
    """Yield every pair whose values differ, the best with the worst first."""
    ranked = list(zip(responses, values, strict=True))
    numbers = range(len(ranked))
    best, worst = (pick(numbers, key=lambda number: values[number], default=0) for pick in (max, min))
    outer = (min(best, worst), max(best, worst))
    for one, other in sorted(combinations(numbers, 2), key=lambda pair: pair != outer):
        (first, high), (second, low) = ranked[one], ranked[other]
        if high != low:
            yield _pair(prompt, first, second, high > low)


SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip
"""ShareGPT's `from`, as roles of chat messages."""
_ROLES = {*SPEAKERS.values(), "developer", "function", "ipython", "observation"}
_NEAR = 0.66  # of a role: `sys` is `system`, and `agent` no `assistant`


def meant_role(role: str) -> str | None:
    """Return the role that a misspelt `role` probably means; None if it is known, or unlike any known role."""
    if role in _ROLES:
        return None
    name = role.strip().lower()
    near = get_close_matches(name, [*SPEAKERS, *_ROLES], n=1, cutoff=_NEAR)
    return SPEAKERS.get(near[0], near[0]) if near else None


KTO = frozenset({"prompt", "completion", "label"})
SHAREGPT = frozenset({"conversations", "chosen", "rejected"})
OPTIONAL = ("system", "tools", "probability", "margin", "score_chosen", "score_rejected")
FORMS: dict[frozenset[str], Callable[[Columns], Iterator[Columns]]] = {
    SHAREGPT: _sharegpt,
    frozenset({"prompt", "response_0", "response_1", "better_response_id"}): _pku,
    frozenset({"history", "human_ref_A", "human_ref_B", "labels"}): _shp,
    frozenset({"conversation_a", "conversation_b", "winner"}): _arena,
    frozenset({"prompt", "responses", "ranks"}): _ranked,
    frozenset({"prompt", "responses", "scores"}): _ranked,
    frozenset({"prompt", "answers"}): _answers,
    frozenset({"instruction", "completions"}): _answers,
}
"""Layouts by the columns that they need. The first layout whose columns are all present applies."""
