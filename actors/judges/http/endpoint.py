"""A language model as a judge, behind an OpenAI-compatible endpoint: it compares every pair of completions.

Each pair is shown in both orders and the answers are averaged, so that a position bias cancels (Zheng et al. 2023,
"Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.4). HTTP itself is in `client.py`.
"""

import asyncio
import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import aiohttp
import jinja2
import jinja2.meta
import jinja2.sandbox

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges.config import EndpointJudgeConfig
from actors.judges.http.client import HttpClient
from actors.judges.patterns import compile_pattern, last_match
from actors.preferences import Table, antisymmetric, mean_win_probabilities
from actors.records import Group, Judgement, Prompt

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
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}  # preference for the answer shown first
TOP_LOGPROBS = 20  # the API's maximum
REMEMBERED = 10_000
"""Comparisons whose verdicts are kept, so that a batch that is retried pays for none of them twice."""


@dataclass
class Counts:
    """Totals since the judge was made. A pair is two comparisons."""

    comparisons: int = 0
    remembered: int = 0  # comparisons answered from memory
    abstentions: int = 0  # answers without a verdict
    pairs: int = 0  # pairs with a verdict in both orders
    order_disagreements: int = 0
    """Such pairs in which the two orders prefer different completions."""
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0  # answers whose tokens the endpoint did not report


class EndpointJudge:
    """Asks for P(i > j) of every pair of a group's completions; a completion's mean preference is its score."""

    def __init__(self, config: EndpointJudgeConfig) -> None:
        """Raise UsageError if the template or pattern is invalid or the key is missing. Nothing is sent yet."""
        self._config = config
        self._client = HttpClient(config)
        self._template = compile_template(config.template or DEFAULT_TEMPLATE)
        self._pattern = compile_pattern("judging.judge.verdict_pattern", config.verdict_pattern, "([ABC])")
        self._verdicts: OrderedDict[bytes, float | None] = OrderedDict()
        self._counts = Counts()

    async def judge(self, groups: Sequence[Group]) -> list[Judgement | OffbeatError]:
        """Return each group's preferences, or the error of its first comparison that failed.

        n completions of different text cost n (n - 1) requests; equal texts tie.
        """
        async with self._client.session() as session:
            return list(await asyncio.gather(*[self._judge_one(session, group) for group in groups]))

    def metrics(self) -> dict[str, float]:
        """Return `Counts`, `RequestCounts`, and `cost` by the configured prices."""
        counts = self._counts
        price = counts.tokens_in * self._config.input_price + counts.tokens_out * self._config.output_price
        counted = {name: float(value) for name, value in vars(counts).items()}
        return counted | {"cost": price / 1e6} | self._client.counts.metrics()

    async def _judge_one(self, session: aiohttp.ClientSession, group: Group) -> Judgement | OffbeatError:
        """Judge one group; once a comparison has failed, cancel the rest."""
        texts = list(dict.fromkeys(completion.text for completion in group.completions))
        orders = list(permutations(range(len(texts)), 2))
        prompt = group.lease.prompt
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(self._compare(session, prompt, texts[i], texts[j])) for i, j in orders]
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            if isinstance(first, OffbeatError):
                return first
            raise
        verdicts = dict(zip(orders, (task.result() for task in asked), strict=True))
        if verdicts and all(verdict is None for verdict in verdicts.values()):
            return RunError(
                f"the judging model gave no verdict on prompt '{prompt.id}' in any of {len(verdicts)} answers; check "
                "judging.judge.verdict_pattern, judging.judge.template and judging.judge.max_tokens"
            )
        table = self._preferences(verdicts, len(texts))
        rows = [texts.index(completion.text) for completion in group.completions]
        preferences = tuple(tuple(table[i][j] for j in rows) for i in rows)
        return Judgement(scores=mean_win_probabilities(preferences), preferences=preferences)

    async def _compare(self, session: aiohttp.ClientSession, prompt: Prompt, first: str, second: str) -> float | None:
        """Return the preference for `first`, shown first; None for an abstention, unless that fails the group."""
        body = self._request(prompt, first, second)
        key = hashlib.sha256(json.dumps(body).encode()).digest()
        self._counts.comparisons += 1
        if key in self._verdicts:
            self._counts.remembered += 1
            verdict = self._verdicts[key]
        else:
            verdict = await self._client.post(session, "/chat/completions", body, self._read)
            self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)
        if verdict is None:
            self._counts.abstentions += 1
            if self._config.abstention == "fail":
                raise RunError(
                    f"the judging model gave no verdict on a pair of prompt '{prompt.id}'; with "
                    "judging.judge.abstention=tie it counts as 1/2"
                )
        return verdict

    def _request(self, prompt: Prompt, first: str, second: str) -> dict[str, Any]:
        """Build the body of one comparison."""
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
            raise UsageError(f"judging.judge.template cannot be filled in for prompt '{prompt.id}': {error}") from error
        system = [] if config.system is None else [{"role": "system", "content": config.system}]
        body: dict[str, Any] = {"model": config.model, "messages": [*system, {"role": "user", "content": text}]}
        sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        body |= {name: value for name, value in sampling.items() if value is not None}
        if config.use_logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body | config.extra_body

    def _read(self, answer: Any) -> float | None:
        """Read a verdict and count its tokens.

        Raises KeyError, IndexError, TypeError or ValueError for anything but a chat completion.
        """
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        tokens_in, tokens_out = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        verdict = read_verdict(choice["message"]["content"] or "", self._pattern)
        if verdict is not None and self._config.use_logprobs:
            if not (choice.get("logprobs") or {}).get("content"):
                raise ValueError("the endpoint gives no log-probs; set judging.judge.use_logprobs to false")
            verdict = read_probability(choice["logprobs"]["content"])
        self._counts.tokens_in += tokens_in
        self._counts.tokens_out += tokens_out
        self._counts.unmetered += not usage
        return verdict

    def _preferences(self, verdicts: dict[tuple[int, int], float | None], count: int) -> Table:
        """Average both orders of each pair; [count][count]. An abstention counts as 1/2."""
        table = [[0.5] * count for _ in range(count)]
        for (i, j), verdict in verdicts.items():
            other = verdicts[j, i]
            table[i][j] = 0.5 if verdict is None else verdict
            if i < j and verdict is not None and other is not None:
                self._counts.pairs += 1
                self._counts.order_disagreements += (verdict - 0.5) * (other - 0.5) > 0
        return antisymmetric(table)


def compile_template(text: str) -> jinja2.Template:
    """Compile the question. Raises UsageError if it is not a template, lacks an answer or uses unknown variables."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        used = jinja2.meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(
            f"judging.judge.template is not a Jinja template: line {error.lineno}: {error.message}"
        ) from error
    if not {"first", "second"} <= used <= VARIABLES:
        raise UsageError(
            f"judging.judge.template uses {sorted(used)}; it must use first and second, and may use "
            f"{sorted(VARIABLES - {'first', 'second'})}"
        )
    return template


def read_verdict(text: str, pattern: re.Pattern[str]) -> float | None:
    """Return the preference for the answer shown first, by the last match of `pattern`; None without a verdict."""
    letter = last_match(pattern, text)
    return None if letter is None else VERDICTS.get(letter.strip().upper())


def read_probability(tokens: Any) -> float | None:
    """Return the preference for the answer shown first, by the log-probs of the last verdict token; None without one.

    (p_A + p_C / 2) / (p_A + p_B + p_C), where p_X is the sum over the top tokens that say X, with or without spaces and
    quotes. Raises KeyError, TypeError or ValueError if `tokens` are not the API's log-probs.
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
            raise ValueError("the verdict token is not among its own top log-probs")
        return sum(VERDICTS[letter] * share for letter, share in mass.items()) / total
    return None


def _letter(token: str) -> str | None:
    letter = token.strip().strip("\"'`*_[]().:").upper()
    return letter if letter in VERDICTS else None
