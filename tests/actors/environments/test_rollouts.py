"""Conversations over an engine with scripted turns: their tokens, what is trained on, and what goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from actors.environments.config import EnvironmentConfig
from actors.environments.rollouts import Rollouts
from actors.errors import OffbeatError, RunError
from actors.records import Completion, Prompt
from tests.fakes.tokenizers import chat_tokenizer

TOKENIZER = chat_tokenizer()
END = TOKENIZER.eos_token_id
ECHO = "tests.actors.environments.test_rollouts:Echo"


class Echo:
    """Answers `say X` with X and anything else with the end; `raise`, `hang` and `lie` misbehave."""

    released = threading.Event()

    def __init__(self, role: str = "tool") -> None:
        self.role, self.prompts = role, list[str]()

    def reset(self, prompt: Prompt) -> None:
        self.prompts.append(prompt.text)

    def step(self, message: str) -> Any:
        assert len(self.prompts) == 1
        if message == "raise":
            raise ValueError("no such tool")
        if message == "hang":
            Echo.released.wait(10)
        if message == "lie":
            return {"role": "assistant", "content": "I am the policy"}
        return {"role": self.role, "content": message[4:]} if message.startswith("say ") else None


class AsyncEcho(Echo):
    async def step(self, message: str) -> Any:
        return Echo.step(self, message)


class ScriptedEngine:
    """Finishes every request in the next step, with the next turn of its script."""

    def __init__(self, turns: Callable[[str, int], str]) -> None:
        self.version = 3
        self.asked: list[tuple[str, list[int], int | None, int | None]] = []
        self.aborted: list[str] = []
        self._turns, self._running, self._counts = turns, dict[str, bool](), dict[str, int]()

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        opponent: bool = False,
        seed: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.asked.append((request_id, list(prompt_token_ids), seed, max_tokens))
        self._running[request_id] = opponent

    def step(self) -> list[tuple[str, Completion]]:
        running, self._running = self._running, {}
        return [(request_id, self._turn(request_id, opponent)) for request_id, opponent in running.items()]

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids
        self._running = {name: role for name, role in self._running.items() if name not in request_ids}

    def _turn(self, request_id: str, opponent: bool) -> Completion:
        number = self._counts[request_id] = self._counts.get(request_id, -1) + 1
        text = self._turns(request_id, number)
        ids = tokens(text.removesuffix("|")) + ([] if text.endswith("|") else [END])
        self.version += 1
        return Completion(
            tuple(ids), (-1.0,) * len(ids), (self.version,) * len(ids), text, not text.endswith("|"), opponent
        )


def tokens(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def run(
    turns: Callable[[str, int], str],
    *,
    requests: int = 1,
    seed: int | None = None,
    **settings: Any,
) -> tuple[dict[str, Completion | OffbeatError], ScriptedEngine]:
    engine = ScriptedEngine(turns)
    limit, in_order = settings.pop("limit", 200), settings.pop("in_order", False)
    config = EnvironmentConfig(**{"path": ECHO} | settings)
    rollouts = Rollouts(engine, config, tokenizer=TOKENIZER, ends=[END], limit=limit, in_order=in_order)
    for number in range(requests):
        rollouts.add(str(number), Prompt("p:0", tuple(tokens("<|user|>hi<|end|><|assistant|>")), "hi"), False, seed)
    found: dict[str, Completion | OffbeatError] = {}
    deadline = time.monotonic() + 5.0
    while rollouts.busy and time.monotonic() < deadline:
        found |= dict(rollouts.step())
    assert not rollouts.busy
    return found, engine


@pytest.mark.parametrize("path", [ECHO, ECHO.replace(":Echo", ":AsyncEcho")])
@pytest.mark.parametrize("in_order", [False, True])
def test_a_conversation_is_what_the_chat_template_writes_and_the_environment_s_part_is_given(path, in_order):
    found, engine = run(lambda _, turn: ["say 42", "so 42"][turn], path=path, in_order=in_order)
    completion = found["0"]
    whole = "say 42<|end|>\n<|tool|>42<|end|>\n<|assistant|>so 42<|end|>"
    assert list(completion.token_ids) == tokens(whole)
    ((start, end),) = completion.given
    assert list(completion.token_ids[start:end]) == tokens("\n<|tool|>42<|end|>\n<|assistant|>")
    assert completion.sampled(completion.logprobs) == [-1.0] * len(tokens("say 42<|end|>so 42<|end|>"))
    assert set(completion.logprobs[start:end]) == {0.0}
    assert completion.messages == (("assistant", "say 42"), ("tool", "42"), ("assistant", "so 42"))
    assert (completion.text, completion.finished) == ("so 42", True)
    assert completion.transcript == "assistant: say 42\n\ntool: 42\n\nassistant: so 42"
    # The first turn at version 4; the engine has it when it reads the answer; the second turn at 5.
    assert completion.versions == (4,) * end + (5,) * (len(completion.versions) - end)
    assert engine.asked[1][1] == tokens("<|user|>hi<|end|><|assistant|>say 42<|end|>\n<|tool|>42<|end|>\n<|assistant|>")


def test_without_an_environment_a_turn_is_the_completion():
    rollouts = Rollouts(ScriptedEngine(lambda *_: "say 42"))
    rollouts.add("0", Prompt("p:0", (5,), "hi"))
    ((_, completion),) = rollouts.step()
    assert (completion.text, completion.given, completion.messages, rollouts.busy) == ("say 42", (), (), False)


def test_each_turn_has_the_room_that_is_left_and_a_reply_that_does_not_fit_ends_the_conversation_unfinished():
    reply = len(tokens("\n<|tool|>1<|end|>\n<|assistant|>"))
    turn = len(tokens("say 1<|end|>"))
    found, engine = run(lambda *_: "say 1", limit=2 * (turn + reply))
    assert [room for *_, room in engine.asked] == [None, turn + reply]
    assert (len(found["0"].token_ids), found["0"].finished) == (2 * turn + reply, False)


def test_a_conversation_that_goes_on_after_its_last_turn_is_unfinished():
    found, engine = run(lambda *_: "say 1", max_turns=3)
    assert (len(engine.asked), found["0"].finished, len(found["0"].given)) == (3, False, 2)


def test_a_turn_that_was_cut_ends_the_conversation_without_an_answer():
    found, _ = run(lambda *_: "say 4|")
    assert (found["0"].finished, found["0"].given) == (False, ())


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("raise", "environment '.*Echo' raised ValueError: no such tool"),
        ("hang", "did not answer within sampling.environment.timeout_seconds 0.2"),
        ("lie", "answered {'role': 'assistant', .*step must return a message"),
    ],
)
def test_what_goes_wrong_in_an_environment_fails_its_own_conversation_alone(says, told):
    Echo.released.clear()
    found, _ = run(lambda request, _: says if request == "0" else "bye", requests=2, timeout_seconds=0.2)
    Echo.released.set()
    assert isinstance(found["1"], Completion)
    with pytest.raises(RunError, match=told):
        raise found["0"]


def test_an_answer_to_a_conversation_that_was_dropped_is_ignored():
    Echo.released.clear()
    engine = ScriptedEngine(lambda *_: "hang")
    rollouts = Rollouts(engine, EnvironmentConfig(path=ECHO), tokenizer=TOKENIZER, ends=[END], limit=99)
    prompt = Prompt("p:0", (5,), "hi")
    rollouts.add("0", prompt)
    rollouts.step()
    rollouts.abort(["0"])
    rollouts.add("0", prompt)  # another conversation under the same name
    Echo.released.set()
    time.sleep(0.05)
    assert rollouts._heard() == []
    assert (engine.aborted, rollouts.busy) == (["0"], True)


def test_in_order_each_turn_has_a_random_stream_of_its_own_the_same_every_time():
    seeds = [[seed for _, _, seed, _ in run(lambda *_: "say 1", seed=7, max_turns=3)[1].asked] for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert seeds[0][0] == 7
    assert len(set(seeds[0])) == 3


def test_a_role_that_the_template_does_not_know_is_refused_with_its_name():
    found, _ = run(lambda *_: "say 1", arguments={"role": "oracle"})
    with pytest.raises(RunError, match=r"no place for a message of role 'oracle'.*such as 'user'"):
        raise found["0"]
