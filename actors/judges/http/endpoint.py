"""A language model as a judge, behind an OpenAI-compatible endpoint: every pair of completions is compared.

Each pair is shown in both orders and the two answers are averaged, so that a preference for a position cancels (Zheng
et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.4). It must not know HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges.config import EndpointJudgeConfig
from actors.judges.http.client import HttpClient
from actors.records import Group, Judgement, Prompt
from actors.replay_buffer.pairing import mean_win_probabilities

DEFAULT_TEMPLATE = """\
Compare two answers to the same request. Judge only how well each serves the person who asked: is it right, does it \
do what was asked, is it clear? Length and order do not matter.

<request>
{% if messages %}{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% else %}{{ prompt }}
{% endif %}</request>
<answer_a>
{{ first }}
</answer_a>
<answer_b>
{{ second }}
</answer_b>

Which answer is better? Reply with exactly one letter: A, B, or C if neither is better."""

VARIABLES = {"prompt", "messages", "answer", "first", "second"}
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}
"""Preference for the answer shown first."""
TOP_LOGPROBS = 20
"""The most that the API gives."""
REMEMBERED = 10_000
"""Comparisons whose verdicts are kept, so that a batch that is judged again pays for none of them twice."""


@dataclass(frozen=True)
class Reply:
    """One answer of the judging model."""

    verdict: float | None
    """Preference for the answer shown first, in [0, 1]; None for an abstention."""
    tokens_in: int = 0
    tokens_out: int = 0
    metered: bool = False
    """Whether the endpoint counted the tokens."""


@dataclass
class Counts:
    """What the judge asked and was told. A pair is two comparisons."""

    comparisons: int = 0
    remembered: int = 0
    """Comparisons that were not asked again."""
    abstentions: int = 0
    """Answers without a verdict."""
    pairs: int = 0
    """Pairs with a verdict in both orders."""
    order_disagreements: int = 0
    """Of these, pairs in which the two orders prefer different completions."""
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0
    """Answers whose tokens the endpoint did not count."""


class EndpointJudge:
    """P(i > j) of every pair of a group's completions; the mean of a completion's preferences is its score."""

    def __init__(self, config: EndpointJudgeConfig, client: HttpClient | None = None) -> None:
        """The endpoint is first asked when something is judged.

        Args:
            config: where, which model, what it is asked and how its answers are read.
            client: in place of one made of `config`.

        Raises:
            UsageError: a template or pattern that is none, or a missing key.
        """
        self._config = config
        self._client = client or HttpClient(config)
        self._template = compile_template(config.template or DEFAULT_TEMPLATE)
        self._pattern = compile_pattern(config.verdict_pattern)
        self._verdicts: OrderedDict[bytes, float | None] = OrderedDict()
        self._counts = Counts()

    async def judge(self, groups: Sequence[Group]) -> list[Judgement | OffbeatError]:
        """Preferences of each group, or the error of the first of its comparisons that got no answer.

        n completions cost n (n - 1) requests, n being those of different text; equal texts tie.
        """
        async with self._client.session() as session:

            async def ask(body: dict[str, Any]) -> Reply:
                return await self._client.post(session, "/chat/completions", body, self._read)

            return list(await asyncio.gather(*[self._judge_one(ask, group) for group in groups]))

    def metrics(self) -> dict[str, float]:
        """What `Counts` and `RequestCounts` count, and `cost` by the configured prices."""
        counts = self._counts
        price = counts.tokens_in * self._config.input_price + counts.tokens_out * self._config.output_price
        counted = {name: float(value) for name, value in vars(counts).items()}
        return counted | {"cost": price / 1e6} | self._client.counts.metrics()

    async def _judge_one(
        self, ask: Callable[[dict[str, Any]], Awaitable[Reply]], group: Group
    ) -> Judgement | OffbeatError:
        """One group; the rest of its comparisons is not asked once one has failed."""
        texts = list(dict.fromkeys(completion.text for completion in group.completions))
        orders = list(permutations(range(len(texts)), 2))
        prompt = group.lease.prompt
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(self._compare(ask, prompt, texts[i], texts[j])) for i, j in orders]
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            if isinstance(first, OffbeatError):
                return first
            raise
        verdicts = dict(zip(orders, (task.result() for task in asked), strict=True))
        if verdicts and all(verdict is None for verdict in verdicts.values()):
            return RunError(
                f"the judging model gave no verdict on prompt '{prompt.id}', {len(verdicts)} times; see "
                "judging.judge.verdict_pattern, template and max_tokens"
            )
        table = self._preferences(verdicts, len(texts))
        rows = [texts.index(completion.text) for completion in group.completions]
        preferences = tuple(tuple(table[i][j] for j in rows) for i in rows)
        return Judgement(scores=mean_win_probabilities(preferences), preferences=preferences)

    async def _compare(
        self, ask: Callable[[dict[str, Any]], Awaitable[Reply]], prompt: Prompt, first: str, second: str
    ) -> float | None:
        """Preference for `first`, shown first; None for an abstention.

        Raises RunError for an abstention where these fail, and what `ask` raises.
        """
        body = self._request(prompt, first, second)
        key = hashlib.sha256(json.dumps(body).encode()).digest()
        self._counts.comparisons += 1
        if key in self._verdicts:
            self._counts.remembered += 1
            verdict = self._verdicts[key]
        else:
            reply = await ask(body)
            verdict = self._verdicts[key] = reply.verdict
            self._counts.tokens_in += reply.tokens_in
            self._counts.tokens_out += reply.tokens_out
            self._counts.unmetered += not reply.metered
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)
        if verdict is None:
            self._counts.abstentions += 1
            if self._config.abstention == "fail":
                raise RunError(f"the judging model gave no verdict on a pair of prompt '{prompt.id}'")
        return verdict

    def _request(self, prompt: Prompt, first: str, second: str) -> dict[str, Any]:
        """The body of one comparison."""
        config = self._config
        try:
            text = self._template.render(
                prompt=prompt.text,
                messages=prompt.metadata.get("messages"),
                answer=prompt.answer,
                first=first,
                second=second,
            )
        except jinja2.TemplateError as error:
            raise UsageError(f"judge.template cannot be filled in for prompt '{prompt.id}': {error}") from error
        system = [] if config.system is None else [{"role": "system", "content": config.system}]
        body: dict[str, Any] = {"model": config.model, "messages": [*system, {"role": "user", "content": text}]}
        if config.temperature is not None:
            body["temperature"] = config.temperature
        if config.max_tokens is not None:
            body["max_tokens"] = config.max_tokens
        if config.use_logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body | config.extra_body

    def _read(self, answer: Any) -> Reply:
        """Raises KeyError, IndexError, TypeError or ValueError for anything but a chat completion."""
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        tokens_in, tokens_out = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        text = choice["message"]["content"] or ""
        verdict = read_verdict(text, self._pattern)
        if verdict is not None and self._config.use_logprobs:
            if not (choice.get("logprobs") or {}).get("content"):
                raise ValueError("the endpoint gives no log-probs; set judging.judge.use_logprobs to false")
            verdict = read_probability(choice["logprobs"]["content"])
        return Reply(verdict, tokens_in, tokens_out, metered=bool(usage))

    def _preferences(self, verdicts: dict[tuple[int, int], float | None], count: int) -> list[list[float]]:
        """[count][count]: P(i > j) = (p_ij + 1 - p_ji) / 2, p_ij with i shown first."""
        table = [[0.5] * count for _ in range(count)]
        for i, j in combinations(range(count), 2):
            shown_first, shown_second = verdicts[i, j], verdicts[j, i]
            if shown_first is not None and shown_second is not None:
                self._counts.pairs += 1
                self._counts.order_disagreements += (shown_first - 0.5) * (shown_second - 0.5) > 0
            p, q = (0.5 if each is None else each for each in (shown_first, shown_second))
            table[i][j] = 0.5 * (p + 1.0 - q)
            table[j][i] = 1.0 - table[i][j]
        return table


def compile_template(text: str) -> jinja2.Template:
    """The template of the question.

    Raises UsageError for one that Jinja cannot read, that lacks an answer or that uses what there is not.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        used = jinja2.meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"judge.template is no Jinja template: line {error.lineno}: {error.message}") from error
    if not {"first", "second"} <= used <= VARIABLES:
        raise UsageError(
            f"judge.template uses {sorted(used)}; it must use first and second, and may use "
            f"{sorted(VARIABLES - {'first', 'second'})} beside them"
        )
    return template


def compile_pattern(text: str) -> re.Pattern[str]:
    """The pattern of the verdict; raises UsageError for no regular expression, or one without a group."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(f"judge.verdict_pattern {text!r} is no regular expression: {error}") from error
    if pattern.groups < 1:
        raise UsageError(f"judge.verdict_pattern {text!r} has no group; put the letter in parentheses, as ([ABC])")
    return pattern


def read_verdict(text: str, pattern: re.Pattern[str]) -> float | None:
    """Preference for the answer shown first by the last match of `pattern`; None where there is no verdict."""
    last = None
    for match in pattern.finditer(text):
        last = match.group(1)
    return None if last is None else VERDICTS.get(last.strip().upper())


def read_probability(tokens: Any) -> float | None:
    """Preference for the answer shown first by the log-probs of the last token that is a verdict.

    (p_A + p_C / 2) / (p_A + p_B + p_C), where p_X adds up the likeliest tokens that say X, with or without spaces and
    quotes; None where no token is a verdict.

    Raises:
        KeyError, TypeError, ValueError: not log-probs as the API gives them.
    """
    for token in reversed(tokens):
        if _letter(token["token"]) is None:
            continue
        mass = dict.fromkeys(VERDICTS, 0.0)
        for likely in token["top_logprobs"]:
            if (letter := _letter(likely["token"])) is not None:
                mass[letter] += math.exp(min(0.0, likely["logprob"]))
        total = sum(mass.values())
        if not total > 0.0:
            raise ValueError("the verdict's token is not among the likeliest")
        return sum(VERDICTS[letter] * share for letter, share in mass.items()) / total
    return None


def _letter(token: str) -> str | None:
    letter = token.strip().strip("\"'`*_[]().:").upper()
    return letter if letter in VERDICTS else None
