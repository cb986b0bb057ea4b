"""Whole runs on the real engines: Ray, vLLM and DeepSpeed, started as a user starts them, in a process of their own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.output.samples import read_before_and_after, read_samples
from tests.fakes.judges import FakeServer
from tests.integration.runs import finish, leaving_nothing, small_run, start, summary_of, wait_for_updates
from tests.processes import Marked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("own"),
]

ENGINE_GAP = 5e-5
"""Largest log-prob difference, in nats, between the engine and the learner on one token in float32."""
KEY = "sk-of-nobody-1742"


@pytest.fixture
def config(tmp_path: Path, model_dir: Path) -> Path:
    return small_run(tmp_path, model_dir, evaluation={"prompts": 16})


def _run(config: Path | None, *arguments: str, code: int = 0) -> tuple[str, str]:
    return finish(_start(config, *arguments), code)


def _start(config: Path | None, *arguments: str) -> subprocess.Popen[str]:
    """`offbeat train CONFIG`, or `offbeat demo` for None."""
    return start(*(["demo"] if config is None else ["train", str(config)]), *arguments)


def _summary(config: Path) -> dict:
    return summary_of(config.parent / "run")


@dataclass(frozen=True)
class Judged:
    """A finished run with a judge behind an endpoint."""

    run: Path
    model_dir: Path
    server: FakeServer
    output: str


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Judged]:
    """The key reaches the judge actor by the environment; two answers of 429 and one of garbage are asked for again."""

    def script(n: int, body: Any) -> Any:
        if n in (3, 5):
            return 429, {"Retry-After": "0"}, {"error": "slower"}
        letter = "A" if n % 2 else "B"
        choice = {"index": 0, "message": {"role": "assistant", "content": letter}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 50, "completion_tokens": 1}
        return 200, {}, b"<html>" if n == 7 else {"choices": [choice], "usage": usage}

    directory, processes = tmp_path_factory.mktemp("judged"), Marked()
    config = small_run(directory, model_dir, evaluation={"prompts": 16})
    with FakeServer(script) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGE_KEY", KEY)
        judge = f"{{kind: endpoint, url: {server.url}/v1, model: judge-1, api_key_env: JUDGE_KEY, input_price: 2.0, "
        judge += "request_timeout_seconds: 5, longest_pause_seconds: 5}"
        try:
            with leaving_nothing(processes):
                out, err = _run(config, f"judging.judge={judge}")
        finally:
            processes.end()
        yield Judged(directory / "run", model_dir, server, out + err)


def test_an_asynchronous_run_trains_publishes_and_leaves_a_model_that_loads(judged: Judged) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = judged.run
    summary = summary_of(run)
    assert summary["status"] == "completed"
    assert summary["updates"] == 8
    assert summary["staleness"]["max"] <= summary["max_staleness_bound"] == 1
    assert summary["ledger"]["trained"] == 64
    assert summary["win_rate"]["n"] == 16
    assert summary["kl"] is not None
    assert sum(summary["staleness"]["histogram"].values()) == 64
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 8
    assert any((run / "tensorboard").iterdir())
    assert [sample.step for sample in read_samples(run)[0]] == [1]
    assert len(read_before_and_after(run)[0]) == 16
    AutoTokenizer.from_pretrained(run / "final")
    model, start = (AutoModelForCausalLM.from_pretrained(path) for path in (run / "final", judged.model_dir))
    before = dict(start.named_parameters())
    assert [name for name, p in model.named_parameters() if p.equal(before[name])] == [], "every tensor was trained"


def test_a_run_judged_over_http_counts_every_request_and_tells_its_key_to_the_server_alone(judged: Judged) -> None:
    figures, server = summary_of(judged.run)["judging"], judged.server
    assert (figures["rate_limited"], figures["garbage"], figures["retries"], figures["given_up"]) == (2, 1, 3, 0)
    assert figures["requests"] <= len(server.bodies)
    assert figures["answered"] == figures["comparisons"] - figures["remembered"] > 100
    assert figures["tokens_in"] == 50 * figures["answered"]
    assert figures["cost"] == pytest.approx(2e-6 * figures["tokens_in"])
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    written = [path for path in judged.run.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in judged.output


def test_a_run_against_the_mixture_keeps_both_bounds_and_drops_nothing(config: Path) -> None:
    """Opponents of two models mixed in the engine, drawn apart: their log-probs meet the learner's own mixture."""
    out, err = _run(
        config,
        "learner.loss.kind=nash_pg",
        "learner.loss.opponent.kind=mixture",
        "learner.loss.opponent.beta=0.25",
        "learner.loss.opponent.max_staleness=1",
        "learner.loss.opponent.completions_per_prompt=2",
        "replay.max_staleness=3",
        "evaluation.prompts=0",
        "evaluation.exact_every_updates=3",
        "updates=10",  # two more than the limit needs: a batch without any preference measures no step
    )
    summary = _summary(config)
    assert (summary["status"], summary["updates"], summary["loss"]) == ("completed", 10, "nash_pg")
    assert summary["staleness"]["max"] <= summary["max_staleness_bound"] == 3
    assert summary["opponent_staleness"]["max"] <= summary["opponent_bound"] == 1
    assert sum(summary["opponent_staleness"]["histogram"].values()) == 80
    ledger = summary["ledger"]
    assert (ledger["trained"], ledger["returned"], ledger["dropped"]) == (80, {}, {})
    assert 0.0 < summary["exploitability"] < 0.5
    assert 0 < summary["log_ratio_max"] < ENGINE_GAP
    metrics = [json.loads(line) for line in (config.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [value["step"] for value in metrics if "exploitability" in value] == [3, 6, 9, 10]
    # The first update's are fresh; later ones set a policy that has moved against its reference.
    fresh = [value["opponent_log_ratio_max"] for value in metrics if value["opponent_staleness_max"] == 0]
    assert 0 < max(fresh) < ENGINE_GAP
    assert max(value["opponent_staleness_max"] for value in metrics) <= 1
    assert summary["staleness_law"]["bound"] == 1
    assert "staleness limit: opponents are stable up to" in out + err


def test_the_demo_ends_with_two_models_a_comparison_and_a_figure(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    settings = ("updates=3", "world.sft_updates=2", "evaluation.prompts=4", "replay.prompts_per_update=8")
    cluster = ("cluster.address=local", "cluster.num_cpus=2", "cluster.object_store_mib=128")
    out, _ = _run(None, *settings, *cluster, "--output", str(tmp_path / "demo"))
    assert "the best answer to bradley-terry wins" in out
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert (summary["status"], summary["name"], summary["updates"]) == ("completed", "demo", 3)
    assert list(summary["routes"]) == ["bradley-terry", "nash-md"]
    for name, route in summary["routes"].items():
        assert 0.0 < route["exploitability"] < 0.5
        assert route["exact_kl"] > 0.0
        assert 0.0 < route["target_exploitability"] < 0.5
        AutoModelForCausalLM.from_pretrained(tmp_path / "demo" / name / "final")
    kls = [route["target_kl"] for route in summary["routes"].values()]
    assert kls[0] == pytest.approx(kls[1], abs=1e-6)
    assert "a..A  bradley-terry" in out


@pytest.mark.long
def test_at_bound_zero_a_run_resumed_with_more_ranks_and_generators_is_on_policy_to_the_engines_gap(
    config: Path,
) -> None:
    """At staleness 0 every token's behaviour log-prob must be the learner's own, before and after a resume."""
    arguments = ("replay.max_staleness=0", "updates=12", "checkpoints.every_updates=0")
    process = _start(config, *arguments)
    metrics = wait_for_updates(process, config.parent / "run", 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, f"{out}\n{err}"
    interrupted = _summary(config)
    assert interrupted["status"] == "interrupted"
    assert 3 <= interrupted["updates"] < 12

    more = ("learner.ranks=2", "cluster.num_cpus=4")
    _, err = _run(config, *arguments, *more, "--generators", "2", "--resume")
    assert "starting 2 generators and 2 learner ranks" in err
    summary = _summary(config)
    assert summary["status"] == "completed"
    assert summary["updates"] == 12
    assert summary["ledger"]["trained"] == 12 * 8
    values = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [value["step"] for value in values] == list(range(1, 13))
    assert {value["staleness_max"] for value in values} == {0}
    assert 0 < max(value["log_ratio_max"] for value in values) < ENGINE_GAP


def test_a_port_in_use_is_one_sentence_and_leaves_nothing(config: Path) -> None:
    import ray.util

    address = ray.util.get_node_ip_address()
    with socket.socket() as taken:
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        _, err = _run(config, f"learner.port={port}", code=2)
    assert f"learner.port: {port} is in use; choose a free port" in err
    assert "Traceback" not in err
