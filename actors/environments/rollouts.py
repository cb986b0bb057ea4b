"""Rollouts from an engine's requests: one turn each, or a conversation in which an environment answers between turns.

Driven by the thread that owns the engine. Environments run in threads of their own, so that a slow answer holds up no
other conversation. Must not depend on leases, groups or Ray.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import random
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from actors.environments.config import EnvironmentConfig
from actors.environments.protocol import Environment, Message, checked_reply, environment_class
from actors.environments.turns import tokens_between
from actors.errors import OffbeatError, RunError
from actors.records import Completion, Prompt
from actors.user_code import UserCodeError, raised

_POLL_SECONDS = 0.02  # longest wait for an answer while nothing is sampled; orders to the generator wait as long


class TurnEngine(Protocol):
    """The part of `engine.Engine` that rollouts use."""

    @property
    def version(self) -> int: ...
    @property
    def busy(self) -> bool: ...
    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        opponent: bool = False,
        seed: int | None = None,
        max_tokens: int | None = None,
    ) -> None: ...
    def step(self) -> list[tuple[str, Completion]]: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...


@dataclass(slots=True)
class _Conversation:
    """A conversation so far, and its state."""

    prompt: Prompt
    opponent: bool
    seed: int | None
    environment: Environment | None = None  # made when it is first asked
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    given: list[tuple[int, int]] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    turns: int = 0
    deadline: float | None = None
    """Time (seconds) until which the environment may answer; None while the policy speaks."""

    def take(self, turn: Completion) -> None:
        self.token_ids += turn.token_ids
        self.logprobs += turn.logprobs
        self.versions += turn.versions
        self.messages.append(("assistant", turn.text))
        self.turns += 1

    def read(self, reply: Message, token_ids: Sequence[int], version: int) -> None:
        start = len(self.token_ids)
        self.token_ids += token_ids
        self.logprobs += [0.0] * len(token_ids)
        self.versions += [version] * len(token_ids)
        self.given.append((start, len(self.token_ids)))
        self.messages.append((reply["role"], reply["content"]))

    def completion(self, last: Completion, *, finished: bool) -> Completion:
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            versions=tuple(self.versions),
            text=last.text,
            finished=finished,
            opponent=self.opponent,
            given=tuple(self.given),
            messages=tuple(self.messages),
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    conversation: _Conversation
    turn: Completion
    reply: Any = None
    error: BaseException | None = None


class Rollouts:
    """Adds requests to `engine` and returns whole completions.

    `limit`: most tokens of a completion, including the environment's. `stops`: tokens besides `ends` after which the
    policy waits for an answer; a turn that ends otherwise was cut. With `in_order`, `step` waits for each answer at
    once, so that the engine's samples do not depend on the environment's speed.
    """

    def __init__(
        self,
        engine: TurnEngine,
        config: EnvironmentConfig | None = None,
        *,
        tokenizer: Any = None,
        ends: Iterable[int] = (),
        stops: Iterable[int] = (),
        limit: int = 0,
        in_order: bool = False,
    ) -> None:
        self._engine, self._config, self._tokenizer = engine, config, tokenizer
        self._ends, self._speaks_until = frozenset(ends), frozenset(ends) | frozenset(stops)
        self._limit, self._in_order = limit, in_order
        self._make = None if config is None else partial(environment_class(config), **config.arguments)
        self._conversations: dict[str, _Conversation] = {}
        self._answers: queue.SimpleQueue[tuple[str, _Answer]] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        """Return whether `step` has work to do, or to wait for."""
        return self._engine.busy or bool(self._conversations)

    def add(self, request_id: str, prompt: Prompt, opponent: bool = False, seed: int | None = None) -> None:
        """Queue one completion. Raises as `Engine.add`."""
        self._engine.add(request_id, prompt.token_ids, opponent, seed)
        if self._config is not None:
            self._conversations[request_id] = _Conversation(prompt, opponent, seed)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop these completions without returning anything; ignore ids that are not running."""
        for request_id in request_ids:
            self._conversations.pop(request_id, None)
        self._engine.abort(request_ids)

    def step(self) -> list[tuple[str, Completion | OffbeatError]]:
        """Sample one token of every running request; return completed conversations, and errors of failed ones.

        If all conversations wait for their environment, wait a moment for an answer instead.
        """
        done: list[tuple[str, Completion | OffbeatError]] = []
        waiting_only = not self._engine.busy
        for request_id, turn in [] if waiting_only else self._engine.step():
            conversation = self._conversations.get(request_id)
            if conversation is None:
                done.append((request_id, turn))
                continue
            conversation.take(turn)
            if turn.token_ids[-1] in self._speaks_until:
                self._ask(request_id, conversation, turn)
                done += self._heard(wait_for=request_id) if self._in_order else []
            else:
                done.append(self._end(request_id, turn, finished=False))
        return done + self._heard(wait_seconds=_POLL_SECONDS if waiting_only else 0.0)

    def _ask(self, request_id: str, conversation: _Conversation, turn: Completion) -> None:
        """Let the environment answer in a daemon thread: it may hang, and must not keep the process alive."""
        assert self._config is not None
        assert self._make is not None
        conversation.deadline, make = time.monotonic() + self._config.timeout_seconds, self._make

        def work() -> None:
            try:
                environment = conversation.environment
                if environment is None:
                    environment = conversation.environment = make()
                    environment.reset(conversation.prompt)
                reply = environment.step(turn.text)
                if inspect.isawaitable(reply):
                    reply = asyncio.run(_awaited(reply))
                answer = _Answer(conversation, turn, reply)
            except BaseException as error:  # reported by the engine's thread
                answer = _Answer(conversation, turn, error=error)
            self._answers.put((request_id, answer))

        threading.Thread(target=work, name="environment", daemon=True).start()

    def _heard(
        self, wait_seconds: float = 0.0, wait_for: str | None = None
    ) -> list[tuple[str, Completion | OffbeatError]]:
        """Continue conversations that have an answer; return those that ended or failed.

        With `wait_for`, wait until this conversation has an answer or its time is over.
        """
        done: list[tuple[str, Completion | OffbeatError]] = []
        while True:
            awaited = self._conversations.get(wait_for) if wait_for is not None else None
            if awaited is not None and awaited.deadline is not None:
                wait_seconds = max(0.0, awaited.deadline - time.monotonic())
            try:
                request_id, answer = self._answers.get(block=wait_seconds > 0.0, timeout=wait_seconds or None)
            except queue.Empty:
                break
            wait_seconds = 0.0
            # If the conversation was given up, another one may have its id now.
            if self._conversations.get(request_id) is answer.conversation:
                done += self._continue(request_id, answer)
        return done + self._late()

    def _continue(self, request_id: str, answer: _Answer) -> list[tuple[str, Completion | OffbeatError]]:
        assert self._config is not None
        conversation, turn = answer.conversation, answer.turn
        conversation.deadline = None
        try:
            if answer.error is not None:
                raise self._failed(answer.error)
            reply = checked_reply(answer.reply, self._config.path)
            if reply is None:
                return [self._end(request_id, turn, finished=turn.finished)]
            if conversation.turns == self._config.max_turns:
                return [self._end(request_id, turn, finished=False)]
            token_ids = tokens_between(reply, self._tokenizer, self._ends, closed=turn.token_ids[-1] in self._ends)
            room = self._limit - len(conversation.token_ids) - len(token_ids)
            if room < 1:
                return [self._end(request_id, turn, finished=False)]
            conversation.read(reply, token_ids, self._engine.version)
            context = (*conversation.prompt.token_ids, *conversation.token_ids)
            seed = None if conversation.seed is None else _seed_of_turn(conversation.seed, conversation.turns)
            self._engine.add(request_id, context, conversation.opponent, seed, max_tokens=room)
            return []
        except OffbeatError as error:
            del self._conversations[request_id]
            return [(request_id, error)]

    def _end(self, request_id: str, last: Completion, *, finished: bool) -> tuple[str, Completion]:
        return request_id, self._conversations.pop(request_id).completion(last, finished=finished)

    def _late(self) -> list[tuple[str, Completion | OffbeatError]]:
        """Fail conversations whose environment did not answer in time."""
        assert self._config is not None or not self._conversations
        now = time.monotonic()
        late = [
            request_id
            for request_id, conversation in self._conversations.items()
            if conversation.deadline is not None and conversation.deadline < now
        ]
        for request_id in late:
            del self._conversations[request_id]
        return [(request_id, self._too_late()) for request_id in late]

    def _too_late(self) -> RunError:
        assert self._config is not None
        return RunError(
            f"environment '{self._config.path}' did not answer within sampling.environment.timeout_seconds "
            f"{self._config.timeout_seconds:g}; raise it if the environment is only slow"
        )

    def _failed(self, error: BaseException) -> UserCodeError:
        assert self._config is not None
        return raised(f"environment '{self._config.path}'", error, __file__)


def _seed_of_turn(seed: int, turn: int) -> int:
    return random.Random(f"{seed}:{turn}").getrandbits(63)


async def _awaited(reply: Any) -> Any:
    return await reply
