"""Served reward models: requests and answers of vLLM's `/classify`, played by a server, and once by vLLM itself."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.errors import RunError, UsageError
from actors.judges.config import JudgingConfig, RewardModelJudgeConfig, ServedRewardModelJudgeConfig
from actors.judges.factory import make_judge
from actors.judges.http.served import ServedRewardModelJudge, read_logits
from actors.judges.models.reward_model import RewardModelJudge
from actors.judges.worker import JudgeWorker
from actors.records import Group, Judgement
from tests.actors.judges.models.test_reward_model import EOS, W0, WORDS, random_groups, save_model, save_tokenizer
from tests.fakes.judges import FakeServer
from tests.processes import Marked


def classified(*logits: float, order: list[int] | None = None) -> Any:
    """An answer of `/classify`, as vLLM 0.32 gives it."""
    rows = [{"index": i, "label": "LABEL_0", "probs": [logit], "num_classes": 1} for i, logit in enumerate(logits)]
    data = [rows[i] for i in order or range(len(rows))]
    usage = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}
    return {"id": "classify-1", "object": "list", "created": 1, "model": "rm", "data": data, "usage": usage}


def sums(n: int, body: Any) -> Any:
    """A model whose logit is the sum of the token ids."""
    return 200, {}, classified(*map(float, map(sum, body["input"])))


def judge_of(server_url: str, tokenizer: str, policy: str | None = None, **settings: Any) -> ServedRewardModelJudge:
    config = ServedRewardModelJudgeConfig(url=server_url, model="rm", tokenizer=tokenizer, **settings)
    judge = make_judge(config, tokenizer=policy)
    assert isinstance(judge, ServedRewardModelJudge)
    return judge


def test_the_sampled_tokens_are_sent_where_the_vocabulary_is_the_policys(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    groups = random_groups()
    with FakeServer(sums) as server:
        answers = asyncio.run(judge_of(server.url, tokenizer, policy=tokenizer).judge(groups))
    for group, answer in zip(groups, answers, strict=True):
        assert isinstance(answer, Judgement)
        prompt = sum(group.lease.prompt.token_ids)
        assert answer.scores == tuple(prompt + sum(completion.token_ids) for completion in group.completions)
        assert answer.preferences is None
    assert len(server.bodies) == len(groups)
    assert set(server.paths) == {"/classify"}
    assert {(body["model"], body["use_activation"]) for body in server.bodies} == {("rm", False)}


def test_another_vocabulary_is_sent_its_own_tokens(tmp_path: Path) -> None:
    policy = save_tokenizer(tmp_path / "policy", [*WORDS, "another"])
    tokenizer = save_tokenizer(tmp_path / "reward")
    (group,) = random_groups(count=1, completions=1)
    object.__setattr__(group.completions[0], "token_ids", (W0 + 30, EOS))  # which the text does not say
    with FakeServer(sums) as server:
        asyncio.run(judge_of(server.url, tokenizer, policy=policy).judge([group]))
    said = [WORDS.index(word) for word in group.completions[0].text.split()]
    end = [EOS] if group.completions[0].finished else []
    assert server.bodies[0]["input"] == [[*group.lease.prompt.token_ids, *said, *end]]


def test_one_group_that_the_server_refuses_leaves_the_others_alone(tmp_path: Path) -> None:
    def script(n: int, body: Any) -> Any:
        return (400, {}, b"maximum context length is 4 tokens") if n == 0 else sums(n, body)

    tokenizer = save_tokenizer(tmp_path)
    with FakeServer(script) as server:
        judge = judge_of(server.url, tokenizer, max_concurrent_requests=1)
        answers = asyncio.run(judge.judge(random_groups(count=3)))
    assert isinstance(answers[0], UsageError)
    assert "status 400, a wrong request: maximum context length is 4 tokens" in str(answers[0])
    assert all(isinstance(answer, Judgement) for answer in answers[1:])
    assert judge.metrics()["refused"] == 1


def test_a_server_that_is_down_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    with FakeServer(lambda n, body: (503, {}, b"") if n == 0 else sums(n, body)) as server:
        judge = judge_of(server.url, tokenizer, request_backoff_seconds=0.0)
        answers = asyncio.run(JudgeWorker(JudgingConfig(), judge=judge).judge(random_groups()))
    assert all(isinstance(answer, Group) for answer in answers)
    assert judge.metrics()["server_errors"] == judge.metrics()["retries"] == 1


def test_the_order_of_the_answer_is_that_of_its_indices() -> None:
    assert read_logits(classified(1.5, -2.0, 0.25, order=[2, 0, 1]), 3) == (1.5, -2.0, 0.25)


TWO_LABELS = {"data": [{"index": i, "probs": [0.5, 0.5], "num_classes": 2} for i in range(2)]}


@pytest.mark.parametrize(
    "answer",
    [
        classified(1.0),
        classified(1.0, 2.0, 3.0),
        classified(1.0, float("nan")),
        TWO_LABELS,
        {"data": [{"index": 0, "probs": [1.0]}, {"index": 0, "probs": [1.0]}]},
        {"data": [{"index": 0, "probs": [1.0]}, {"index": 1, "probs": [None]}]},
        {"data": [{"index": 0, "probs": [1.0]}, {"index": 1, "probs": [10**400]}]},
        {"data": [{"index": 0, "probs": [1.0]}, {"index": 1, "probs": [True]}]},
        {"data": [{"index": 0, "probs": [1.0]}, {"index": 1, "probs": "7"}]},
        {"data": [{"index": 0, "probs": [1.0]}, {"index": float("inf"), "probs": [1.0]}]},
        {"data": [{"index": 0, "probs": [1.0]}, {"index": 1, "probs": [1.0]}, {"index": 1, "probs": [2.0]}]},
        {"data": [{"index": 0, "probs": [1.0]}, "second"]},
        {"data": None},
        {"object": "error"},
        [],
        None,
    ],
)
def test_anything_but_one_finite_logit_for_each_sequence_is_garbage(answer: Any, tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    with FakeServer(lambda n, body: (200, {}, answer)) as server:
        judge = judge_of(server.url, tokenizer, request_retries=1, request_backoff_seconds=0.0)
        (error,) = asyncio.run(judge.judge(random_groups(count=1, completions=2)))
    assert isinstance(error, RunError)
    assert "unreadable answer" in str(error)
    assert judge.metrics()["garbage"] == 2


def test_a_tokenizer_that_cannot_be_loaded_is_found_when_the_judge_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        judge_of("http://h", str(tmp_path / "nowhere"))


# vLLM itself.


@pytest.fixture
def served(marked: Marked, short_dir: Path) -> Iterator[tuple[str, str]]:
    """The URL of a vLLM server and the directory of the random reward model that it serves."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 1, "initializer_range": 0.2}
    model = save_model(short_dir / "rm", **sizes, max_position_embeddings=512)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--runner", "pooling"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "rm", "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "64", "--max-num-batched-tokens", "64", "--max-num-seqs", "8"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    settings |= {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(short_dir)}
    with (short_dir / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=marked.environ | settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(f"{url}/health"):
            assert server.poll() is None, (short_dir / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield url, model
    finally:
        server.send_signal(signal.SIGINT)  # it then removes its shared memory
        server.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.long
@pytest.mark.timeout(900)
def test_vllm_serves_the_logits_that_transformers_computes(served: tuple[str, str]) -> None:
    url, model = served
    groups = random_groups()
    local = asyncio.run(RewardModelJudge(RewardModelJudgeConfig(path=model), model).judge(groups))
    judge = judge_of(url, model, policy=model)
    answers = asyncio.run(judge.judge(groups))
    scores = [score for judgement in local for score in judgement.scores]
    assert max(scores) - min(scores) > 0.5, "else every model would do"
    for judgement, answer in zip(local, answers, strict=True):
        assert isinstance(answer, Judgement)
        assert answer.scores == pytest.approx(judgement.scores, abs=1e-3)
    assert judge.metrics()["answered"] == judge.metrics()["requests"] == len(groups)

    # What the server itself says of a wrong request.
    wrong = ServedRewardModelJudge(ServedRewardModelJudgeConfig(url=url, model="nope", tokenizer=model))
    (error,) = asyncio.run(wrong.judge(groups[:1]))
    assert isinstance(error, UsageError)
    assert "status 404" in str(error)
    assert "`nope` does not exist" in str(error)
