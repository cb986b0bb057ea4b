"""Judge with a reward model behind vLLM's server: one logit per completion, from the pooling runner's `/classify`."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp

from actors.errors import OffbeatError
from actors.judges.config import ServedRewardModelJudgeConfig
from actors.judges.http.answers import is_number
from actors.judges.http.client import HttpClient
from actors.judges.models.inputs import ModelInputs
from actors.records import Group, Judgement


class ServedRewardModelJudge:
    """Scores prompt + completion with a served sequence-classification model of one label."""

    def __init__(self, config: ServedRewardModelJudgeConfig, policy_tokenizer: str | None = None) -> None:
        """Load the tokenizer. Raises UsageError if that fails or the key is missing. Sends nothing."""
        self._model = config.model
        self._client = HttpClient(config)
        self._inputs = ModelInputs(config.tokenizer or config.model, policy_tokenizer)

    async def judge(self, groups: Sequence[Group]) -> list[Judgement | OffbeatError]:
        """Score with logits, one request per group. Return the error of each group that the server did not answer."""
        async with self._client.session() as session:
            return list(await asyncio.gather(*[self._judge_one(session, group) for group in groups]))

    def metrics(self) -> dict[str, float]:
        """Return `RequestCounts`."""
        return self._client.counts.metrics()

    async def _judge_one(self, session: aiohttp.ClientSession, group: Group) -> Judgement | OffbeatError:
        sequences = [self._inputs.sequence(group.lease.prompt, completion) for completion in group.completions]
        # Without activation, to get the logit itself, not its sigmoid.
        body = {"model": self._model, "input": sequences, "use_activation": False}
        try:
            return Judgement(
                await self._client.post(session, "/classify", body, lambda answer: read_logits(answer, len(sequences)))
            )
        except OffbeatError as error:
            return error


def read_logits(answer: Any, count: int) -> tuple[float, ...]:
    """Read the logits from an answer of `/classify`, in order of the request.

    Raises KeyError, IndexError, TypeError or ValueError unless it holds `count` sequences with one finite number each.
    """
    probs = {each["index"]: each["probs"] for each in answer["data"]}
    rows = [probs[index] for index in range(count)]
    if not len(answer["data"]) == len(probs) == count or any(len(row) != 1 for row in rows):
        raise ValueError(
            f"{len(answer['data'])} sequences of {[len(row) for row in rows][:4]} labels for {count} of 1 label"
        )
    logits = [row[0] for row in rows]
    if not all(map(is_number, logits)):
        raise ValueError(f"logits {str(logits)[:200]} are not all finite numbers")
    return tuple(map(float, logits))
