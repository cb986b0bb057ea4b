"""Judge with a language model behind an OpenAI-compatible endpoint: it compares completions, or scores each.

Each pair is shown in both orders and the answers are averaged, so that a position bias cancels (Zheng et al. 2023,
"Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.4). `client.py` speaks HTTP, `questions.py` writes
the questions, and `answers.py` reads the answers.
"""

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from statistics import fmean
from typing import Any

import aiohttp

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges.config import EndpointJudgeConfig
from actors.judges.http.answers import VERDICTS, Abstention, Verdict, read_answer, read_probability, token_counts, told
from actors.judges.http.client import GivenUpError, HttpClient, RefusedError
from actors.judges.http.figures import Counts
from actors.judges.http.questions import OutOfScaleError, Question
from actors.preferences import Table, antisymmetric, mean_win_probabilities
from actors.records import Group, Judgement, Prompt

TOP_LOGPROBS = 20  # the API's maximum
NO_RESPONSE_FORMAT = (400, 422)  # statuses by which servers refuse `response_format`
REMEMBERED = 10_000
"""Most verdicts that are kept, so that a retried batch does not pay for them twice."""


class EndpointJudge:
    """Asks for P(i > j) of every pair of a group's completions, or for a score of each."""

    def __init__(self, config: EndpointJudgeConfig) -> None:
        """Compile the question, send nothing. Raises UsageError for a bad template or pattern, or a missing key."""
        self._config = config
        self._client = HttpClient(config)
        self._question = Question(config)
        self._structured = config.structured != "off" and "response_format" not in config.extra_body
        # If only one token is requested, an answer of that token is whole, although it ends at the limit.
        limits = config.extra_body.get("max_completion_tokens"), config.extra_body.get("max_tokens", config.max_tokens)
        self._one_token = 1 in limits
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._counts = Counts()

    async def judge(self, groups: Sequence[Group]) -> list[Judgement | OffbeatError]:
        """Return each group's preferences or scores, or the error of its first question that failed.

        n completions with different texts cost n (n - 1) requests in mode `pairs`, else n; equal texts tie.
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
        """Judge one group; once a question has failed, cancel the rest."""
        texts = list(dict.fromkeys(completion.transcript for completion in group.completions))
        rows = [texts.index(completion.transcript) for completion in group.completions]
        orders = list(permutations(range(len(texts)), 2))
        shown = [{"completion": text} for text in texts]
        if self._config.mode == "pairs":
            shown = [{"first": texts[i], "second": texts[j]} for i, j in orders]
        prompt = group.lease.prompt
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(self._ask(session, prompt, each)) for each in shown]
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            if isinstance(first, OffbeatError):
                return first
            raise first from errors
        verdicts = [task.result()[0] for task in asked]
        none = [verdict for verdict in verdicts if isinstance(verdict, Abstention)]
        if none and len(none) == len(verdicts):
            return RunError(
                f"the judging model gave no verdict on prompt '{prompt.id}' in any of {len(verdicts)} answers"
                f"{told(none)}; check judging.judge.verdict_pattern, judging.judge.template and "
                "judging.judge.max_tokens"
            )
        if self._config.mode != "pairs":
            scores = _scores(verdicts)
            return Judgement(tuple(scores[row] for row in rows))
        table, both = _preferences(dict(zip(orders, verdicts, strict=True)), len(texts))
        if any(new for _, new in (task.result() for task in asked)):  # else an earlier try of the batch counted them
            self._counts.count_orders(both)
        preferences = tuple(tuple(table[i][j] for j in rows) for i in rows)
        return Judgement(scores=mean_win_probabilities(preferences), preferences=preferences)

    async def _ask(
        self, session: aiohttp.ClientSession, prompt: Prompt, shown: Mapping[str, str]
    ) -> tuple[Verdict, bool]:
        """Return the verdict on `shown`, and whether it is new. Raises RunError if settings make abstentions fail."""
        body = self._request(prompt, shown)
        key = hashlib.sha256(json.dumps(body).encode()).digest()
        self._counts.count_question(self._config.mode)
        new = key not in self._verdicts
        if new:
            self._verdicts[key] = await self._answered(session, body)
            self._counts.count_verdict(self._verdicts[key])
        self._counts.remembered += not new
        verdict = self._verdicts[key]
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)
        if isinstance(verdict, Abstention) and self._config.abstention == "fail":
            what, instead = ("a pair", "1/2") if self._config.mode == "pairs" else ("a completion", "the mean")
            raise RunError(
                f"the judging model gave no verdict on {what} of prompt '{prompt.id}'{told([verdict])}; with "
                f"judging.judge.abstention=tie it counts as {instead}"
            )
        return verdict, new

    async def _answered(self, session: aiohttp.ClientSession, body: Mapping[str, Any]) -> Verdict:
        """Post a question, with a response format unless the server has refused one."""
        structured = self._structured  # another request may change it meanwhile
        if structured:
            try:
                return await self._post(session, {**body, "response_format": self._question.response_format})
            except RefusedError as error:
                if error.status not in NO_RESPONSE_FORMAT:
                    raise
                if self._config.structured == "on":
                    raise UsageError(
                        f"{error}; if it refuses the response_format, set judging.judge.structured to auto or off"
                    ) from error
        verdict = await self._post(session, body)
        if structured:  # only now: a server that refuses both forms does not refuse the format
            self._structured = False
        return verdict

    async def _post(self, session: aiohttp.ClientSession, body: Mapping[str, Any]) -> Verdict:
        """Post one body; an answer that stays outside the scale is an abstention."""
        read = partial(self._read, structured="response_format" in body)
        try:
            return await self._client.post(session, "/chat/completions", body, read)
        except GivenUpError as error:
            if isinstance(error.cause, OutOfScaleError):
                return Abstention("out_of_scale")
            raise

    def _request(self, prompt: Prompt, shown: Mapping[str, str]) -> dict[str, Any]:
        """Build the body of one question."""
        config = self._config
        system = [] if config.system is None else [{"role": "system", "content": config.system}]
        question = {"role": "user", "content": self._question.text(prompt, shown)}
        body: dict[str, Any] = {"model": config.model, "messages": [*system, question]}
        sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        body |= {name: value for name, value in sampling.items() if value is not None}
        if config.use_logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body | config.extra_body

    def _read(self, answer: Any, *, structured: bool) -> Verdict:
        """Read a verdict, and count the answer's tokens, which cost money with or without a verdict.

        A cut answer has no verdict: its last letter may belong to an unfinished thought. Raises ValueError for
        anything but a chat completion, OutOfScaleError for a number outside the scale.
        """
        self._counts.count_tokens(token_counts(answer))
        said = read_answer(answer)
        if said.cut_short and not (said.cut_short == "length" and self._one_token):
            return Abstention(said.cut_short)
        verdict: float | None
        if self._config.mode != "pairs":
            verdict = self._question.score(said.text)
        elif (letter := self._question.letter(said.text, structured=structured)) is None:
            verdict = None
        elif not self._config.use_logprobs:
            verdict = VERDICTS[letter]
        elif not said.logprobs:
            raise ValueError("the endpoint gives no log-probs; set judging.judge.use_logprobs to false")
        else:
            verdict = read_probability(said.logprobs, letter)
        return Abstention() if verdict is None else verdict


def _preferences(verdicts: Mapping[tuple[int, int], Verdict], count: int) -> tuple[Table, list[tuple[float, float]]]:
    """Average both orders of each pair into a table [count][count]; an abstention counts as 1/2.

    Returns the table, and both verdicts of each pair that has two verdicts.
    """
    table = [[0.5] * count for _ in range(count)]
    both: list[tuple[float, float]] = []
    for (i, j), verdict in verdicts.items():
        other = verdicts[j, i]
        if isinstance(verdict, Abstention):
            continue
        table[i][j] = verdict
        if i < j and not isinstance(other, Abstention):
            both.append((verdict, other))
    return antisymmetric(table), both


def _scores(verdicts: Sequence[Verdict]) -> list[float]:
    """Return the scores. An abstention gets the mean of the others, so that it is neither best nor worst."""
    given = [verdict for verdict in verdicts if not isinstance(verdict, Abstention)]
    mean = fmean(given)
    return [mean if isinstance(verdict, Abstention) else verdict for verdict in verdicts]
