"""Whole runs, from `run_training` to the summary, with fakes for Ray's actors: every way to begin and to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.errors import RunError, UsageError
from actors.generation.weights import fingerprint
from actors.records import Canary, Manifest, TensorRecord
from actors.replay_buffer.buffer import group_to_dict
from actors.world import tokenizer
from launch import train
from launch.cluster import wiring
from launch.output.group_table import BUFFER_FILE, read_buffer
from launch.output.journal import Journal
from launch.output.process import interrupts
from launch.run.protocols import Publication
from launch.settings.run import RunConfig
from learner.backend import checkpoints
from learner.backend.manifest import MANIFEST
from learner.world.policy import TINY, build_policy
from tests.fakes.generators import FakeGenerator
from tests.fakes.judges import FakeJudge
from tests.fakes.models import tiny_llama
from tests.launch.sessions import Actors, Learner, config_of, in_place_of_ray, journaled, summary_of


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    return in_place_of_ray(monkeypatch)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    """A run leaves the process's signal handlers as it found them, however it ends."""
    before = [signal.getsignal(number) for number in interrupts.NUMBERS]
    yield
    assert [signal.getsignal(number) for number in interrupts.NUMBERS] == before


def test_a_completed_run_leaves_model_summary_and_metrics(tmp_path: Path, actors: Actors) -> None:
    assert train.run_training(config_of(tmp_path)) == 0
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["error"], summary["updates"]) == ("completed", None, 6)
    assert summary["win_rate"]["n"] == 4
    assert (tmp_path / "run" / "final").is_dir()
    assert checkpoints.latest(tmp_path / "run" / "checkpoints") == tmp_path / "run" / "checkpoints" / "update-0000006"
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGINT,),
        (signal.SIGTERM,) * 3,
        (signal.SIGHUP,) * 2,
        (signal.SIGQUIT,),
        (signal.SIGXCPU,) * 5,
        (signal.SIGUSR1, signal.SIGTERM),
        (signal.SIGUSR2,),
    ],
    ids=[
        "Ctrl-C",
        "SIGTERM from each thread of a dead supervisor",
        "a terminal that closes",
        "Ctrl-backslash",
        "a limit of CPU time, again and again",
        "a scheduler's warning, then its end",
        "another scheduler's warning",
    ],
)
def test_an_interrupted_run_is_saved_and_goes_on_where_it_was(tmp_path: Path, actors: Actors, signals: Any) -> None:
    actors.learner.interrupt_at, actors.learner.signals = 3, signals
    assert train.run_training(config_of(tmp_path)) == 130
    assert (summary_of(tmp_path)["status"], summary_of(tmp_path)["updates"]) == ("interrupted", 3)

    first = [pair.lease_index for batch in actors.learner.batches for pair in batch]
    actors.learner, actors.generators = Learner(), [FakeGenerator("a")]
    assert train.run_training(config_of(tmp_path), resume=True) == 0
    second = [pair.lease_index for batch in actors.learner.batches for pair in batch]
    assert first + second == list(range(24)), "every lease is trained exactly once over both parts"
    assert actors.learner.loaded == [tmp_path / "run" / "checkpoints" / "update-0000003"]
    assert summary_of(tmp_path)["ledger"]["trained"] == 24
    assert journaled(tmp_path) == [(update, list(range(4 * update, 4 * update + 4))) for update in range(6)]


@pytest.mark.parametrize("older", [False, True])
def test_a_resumed_run_trains_on_the_groups_that_its_checkpoint_holds(
    tmp_path: Path, actors: Actors, older: bool
) -> None:
    """An older version kept them as JSON beside the ledger, and no manifest."""
    settings = {"replay": {"prompts_per_update": 4, "max_staleness": 3}}
    actors.learner.interrupt_at, actors.learner._update_seconds = 2, 0.05
    assert train.run_training(config_of(tmp_path, **settings)) == 130
    checkpoint = tmp_path / "run" / "checkpoints" / "update-0000002"
    held = {lease.index: lease.prompt for lease in actors.generators[0].answered}
    groups = read_buffer(checkpoint / BUFFER_FILE, held.__getitem__)
    assert groups
    if older:
        state = json.loads((checkpoint / "run_state.json").read_text())
        state["buffer"]["groups"] = [group_to_dict(group) for group in groups]
        kept = {name: value for name, value in state.items() if value != MANIFEST}
        (checkpoint / "run_state.json").write_text(json.dumps(kept))
        (checkpoint / BUFFER_FILE).unlink()
        (checkpoint / MANIFEST).unlink()

    actors.learner, actors.generators = Learner(), [FakeGenerator("a")]
    assert train.run_training(config_of(tmp_path, **settings), resume=True) == 0
    again = {lease.index for lease in actors.generators[0].answered}
    assert again.isdisjoint(group.lease.index for group in groups)
    assert summary_of(tmp_path)["ledger"]["trained"] == 24
    assert journaled(tmp_path) == [(update, list(range(4 * update, 4 * update + 4))) for update in range(6)]


def test_what_a_failed_run_did_after_its_checkpoint_is_in_the_journal_until_it_is_done_again(
    tmp_path: Path, actors: Actors
) -> None:
    settings = {"checkpoints": {"every_updates": 2}}
    actors.learner.break_at = 4
    with pytest.raises(RunError, match="ran out of memory"):
        train.run_training(config_of(tmp_path, **settings))
    assert [update for update, _ in journaled(tmp_path)] == [0, 1, 2, 3], "the batch that it failed on included"
    first = [pair.lease_index for batch in actors.learner.batches[:2] for pair in batch]

    actors.learner, actors.generators = Learner(), [FakeGenerator("a")]
    assert train.run_training(config_of(tmp_path, **settings), resume=True) == 0
    second = [pair.lease_index for batch in actors.learner.batches for pair in batch]
    assert [update for update, _ in journaled(tmp_path)] == list(range(6))
    assert [index for _, leases in journaled(tmp_path) for index in leases] == first + second


def test_a_checkpoint_whose_journal_cannot_be_written_does_not_count(
    tmp_path: Path, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(journal: Journal) -> None:
        raise RunError("cannot write the journal")

    monkeypatch.setattr(Journal, "flush", full)
    with pytest.raises(RunError, match="cannot write the journal"):
        train.run_training(config_of(tmp_path, checkpoints={"every_updates": 2}))
    assert checkpoints.latest(tmp_path / "run" / "checkpoints") is None


def test_groups_that_waited_for_opponents_at_an_interrupt_are_granted_again(tmp_path: Path, actors: Actors) -> None:
    settings = {
        "learner": {"loss": {"kind": "nash_pg", "opponent": {"max_staleness": 0}}},
        "replay": {"prompts_per_update": 4, "max_staleness": 3},
    }
    actors.learner.interrupt_at, actors.generators = 2, [FakeGenerator("a", opponents=2)]
    assert train.run_training(config_of(tmp_path, **settings)) == 130
    assert summary_of(tmp_path)["ledger"]["in_flight"] >= 4, (
        "S' = 0: none of the next update's groups has its opponents"
    )

    first = [game.lease_index for games in actors.learner.batches for game in games]
    actors.learner, actors.generators = Learner(), [FakeGenerator("a", opponents=2)]
    assert train.run_training(config_of(tmp_path, **settings), resume=True) == 0
    second = [game.lease_index for games in actors.learner.batches for game in games]
    assert first + second == list(range(24)), "every lease is trained exactly once over both parts"
    assert summary_of(tmp_path)["ledger"]["dropped"] == {}


def test_a_second_interrupt_ends_the_run_at_once_and_does_not_call_it_failed(tmp_path: Path, actors: Actors) -> None:
    actors.learner.interrupt_at, actors.learner.signals = 3, (signal.SIGINT, signal.SIGINT)
    with pytest.raises((asyncio.CancelledError, KeyboardInterrupt)):
        train.run_training(config_of(tmp_path))
    assert summary_of(tmp_path)["status"] == "interrupted"
    assert summary_of(tmp_path)["error"] == "interrupted; ended at once without a checkpoint, --resume starts over"
    assert checkpoints.latest(tmp_path / "run" / "checkpoints") is None


def test_an_interrupt_while_actors_start_ends_the_run_at_once(tmp_path: Path, actors: Actors) -> None:
    """There is nothing to save, and the start of large engines takes minutes."""

    class Starting(Learner):
        async def ready(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    actors.learner = Starting()
    with pytest.raises((asyncio.CancelledError, KeyboardInterrupt)):
        train.run_training(config_of(tmp_path))
    assert summary_of(tmp_path)["status"] == "interrupted"
    assert summary_of(tmp_path)["error"] == "interrupted; nothing to save"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGXCPU])
def test_a_signal_while_a_run_is_taken_down_does_not_void_it(
    tmp_path: Path, actors: Actors, number: signal.Signals
) -> None:
    """All updates, the model and its evaluation are there; the run was called interrupted."""

    class Closing(Learner):
        async def close(self) -> None:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)

    actors.learner = Closing()
    assert train.run_training(config_of(tmp_path)) == 0
    assert summary_of(tmp_path)["status"] == "completed"


def test_sigterm_before_the_loop_ends_the_run_as_ctrl_c_does(
    tmp_path: Path, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "start_judges", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train.run_training(config_of(tmp_path))


def test_a_failed_run_says_why_in_its_summary(tmp_path: Path, actors: Actors) -> None:
    actors.learner.break_at = 3
    with pytest.raises(RunError, match="ran out of memory"):
        train.run_training(config_of(tmp_path))
    assert (summary_of(tmp_path)["status"], summary_of(tmp_path)["error"]) == (
        "failed",
        "the learner ran out of memory",
    )


def test_an_evaluation_that_fails_does_not_cost_the_model(tmp_path: Path, actors: Actors) -> None:
    class Broken(FakeJudge):
        async def judge(self, groups: Any) -> Any:
            if groups[0].lease.index < 0:
                raise RunError("the judge died for good")
            return await super().judge(groups)

    actors.judge = Broken()
    with pytest.raises(RunError, match="the judge died for good"):
        train.run_training(config_of(tmp_path))
    assert (tmp_path / "run" / "final").is_dir()


def test_a_refused_resume_leaves_the_run_s_config_as_it_was(tmp_path: Path, actors: Actors) -> None:
    train.run_training(config_of(tmp_path))
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UsageError, match=r"changed since it was saved: evaluation\.prompts"):
        train.run_training(config_of(tmp_path, evaluation={"prompts": 8}), resume=True)
    with pytest.raises(UsageError, match=r"replay\.prompts_per_update is 8, but the run to resume was saved with 4"):
        train.run_training(config_of(tmp_path, replay={"prompts_per_update": 8}), resume=True)
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_settings_that_no_run_could_meet_leave_no_directory_behind(tmp_path: Path, actors: Actors) -> None:
    replay = {"prompts_per_update": 4, "order": "ready", "max_reuse": 5}
    with pytest.raises(UsageError, match=r"replay\.max_reuse 5 can never be met"):
        train.run_training(config_of(tmp_path, replay=replay))
    assert not (tmp_path / "run").exists()


def test_a_run_that_starts_over_samples_its_opponent_again(tmp_path: Path, actors: Actors) -> None:
    """Interrupted before its first checkpoint, a run may be started over with another model or number of prompts."""
    actors.learner.break_at = 1
    with pytest.raises(RunError):
        train.run_training(config_of(tmp_path))
    actors.learner, actors.generators = Learner(), [FakeGenerator("a")]
    assert train.run_training(config_of(tmp_path, evaluation={"prompts": 6}), resume=True) == 0
    assert summary_of(tmp_path)["win_rate"]["n"] == 6


# ---------------------------------------------------------------- divergence


def _diverging(tmp_path: Path, **divergence: Any) -> RunConfig:
    return config_of(tmp_path, checkpoints={"every_updates": 1, "keep": 2}, divergence={"updates": 2, **divergence})


def _latest(tmp_path: Path) -> str:
    return (tmp_path / "run" / "checkpoints" / "latest").read_text()


def _saved_batches(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run" / "failed_batches").iterdir())


def test_a_run_that_diverges_is_told_and_goes_on_by_default(
    tmp_path: Path, actors: Actors, capsys: pytest.CaptureFixture[str]
) -> None:
    actors.learner.diverging = range(3, 6)
    assert train.run_training(_diverging(tmp_path)) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "the run diverges" in line]
    assert len(told) == 1
    assert "kl_chosen is 600 at update 4, over 500, for 2 updates in a row (divergence.max_kl 500.0)" in told[0]
    assert "diverged-update-000004.jsonl, and those before it from diverged-update-000003.jsonl on" in told[0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["outside_band"] for line in lines] == [0, 0, 1, 2, 3, 0]
    assert _saved_batches(tmp_path) == ["diverged-update-000003.jsonl", "diverged-update-000004.jsonl"]
    batch = (tmp_path / "run" / "failed_batches" / "diverged-update-000004.jsonl").read_text().splitlines()
    assert [json.loads(pair)["lease_index"] for pair in batch] == [12, 13, 14, 15]


def test_a_run_that_diverges_is_stopped_after_a_checkpoint_if_it_is_to(tmp_path: Path, actors: Actors) -> None:
    actors.learner.diverging = range(3, 6)
    with pytest.raises(RunError, match=r"kl_chosen is 600 at update 4, over 500.*a checkpoint of it stands.*--resume"):
        train.run_training(_diverging(tmp_path, action="stop"))
    assert summary_of(tmp_path)["status"] == "failed"
    assert (summary_of(tmp_path)["updates"], _latest(tmp_path)) == (4, "update-0000004")


def test_a_run_that_diverges_goes_back_to_its_last_good_checkpoint_and_on(
    tmp_path: Path, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Update 3 finds the policy after 2 updates outside the band: 1 is the last checkpoint from before."""
    learners = [actors.learner, Learner()]
    actors.learner.diverging = range(3, 7)
    monkeypatch.setattr(wiring, "start_learner", lambda *_: learners[0] if not learners[0].batches else learners[1])
    monkeypatch.setattr(wiring, "start_generators", lambda *_, **__: [FakeGenerator("a")])
    assert train.run_training(_diverging(tmp_path, action="rollback")) == 0
    assert [len(learner.batches) for learner in learners] == [4, 5]
    assert learners[1].loaded == [tmp_path / "run" / "checkpoints" / "update-0000001"]
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["updates"], summary["ledger"]["trained"]) == ("completed", 6, 24)
    assert max(map(int, summary["staleness"]["histogram"])) <= summary["max_staleness_bound"]
    assert [index for _, leases in journaled(tmp_path) for index in leases] == list(range(24))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["outside_band"]) for line in lines] == [(step, 0) for step in range(1, 7)]


def test_a_run_that_diverges_again_and_again_fails_with_a_good_checkpoint_as_the_latest(
    tmp_path: Path, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners: list[Learner] = []

    def start(*_: Any) -> Learner:
        learners.append(Learner())
        learners[-1].diverging = range(3, 100)
        return learners[-1]

    monkeypatch.setattr(wiring, "start_learner", start)
    monkeypatch.setattr(wiring, "start_generators", lambda *_, **__: [FakeGenerator("a")])
    with pytest.raises(RunError, match=r"latest checkpoint is now .*update-0000002, from before.*--resume"):
        train.run_training(_diverging(tmp_path, action="rollback", max_rollbacks=1))
    assert len(learners) == 2
    assert _latest(tmp_path) == "update-0000002"


def test_there_is_no_way_back_from_the_first_updates(tmp_path: Path, actors: Actors) -> None:
    actors.learner.diverging = range(1, 7)
    with pytest.raises(RunError, match="no checkpoint from before to go back to"):
        train.run_training(_diverging(tmp_path, action="rollback"))


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy")
    build_policy(TINY).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


class Publishing(Learner):
    """Publishes the weights of a model, drawn a little apart for each version."""

    def __init__(self, model: Path, location: Path) -> None:
        super().__init__()
        self._tensors, self._location = load_file(model / "model.safetensors"), location

    async def export(self, version: int) -> Publication:
        self.exported.append(version)
        drawn = torch.Generator().manual_seed(version)
        tensors = {name: each + 0.1 * torch.randn(each.shape, generator=drawn) for name, each in self._tensors.items()}
        save_file(tensors, self._location)
        records = tuple(TensorRecord(n, tuple(t.shape), "float32", fingerprint(t)) for n, t in tensors.items())
        return Publication(Manifest(version, records, Canary((), ()), "shm", str(self._location)))


def _exact_lines(tmp_path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "exploitability" in line]


def test_in_the_world_the_policy_is_evaluated_by_enumeration(tmp_path: Path, actors: Actors, world_model: Path) -> None:
    """Of six updates after the fourth and the last, whose mean is that of the last tenth."""
    settings = {
        "model": {"path": str(world_model)},
        "generators": {"max_model_len": 16},
        "publication": {"canary_tokens": 8},
        "world": {"task": "intransitive"},
        "evaluation": {"prompts": 0, "exact_every_updates": 4},
    }
    actors.learner = Publishing(world_model, tmp_path / "weights.safetensors")
    assert train.run_training(config_of(tmp_path, **settings)) == 0
    lines, summary = _exact_lines(tmp_path), summary_of(tmp_path)
    assert [line["step"] for line in lines] == [4, 6]
    assert 0.0 < lines[-1]["exploitability"] < 0.5
    assert lines[-1]["exact_kl"] > 0.0
    assert lines[-1]["family_0"] > 0.0
    assert summary["exploitability"] == summary["exploitability_tail"] == lines[-1]["exploitability"]
    assert (summary["exact_kl"], summary["preference"]) == (lines[-1]["exact_kl"], lines[-1]["exact_preference"])
    assert summary["family_shares"] == [lines[-1][f"family_{number}"] for number in range(3)]


@pytest.mark.parametrize("other", ["prompts", "vocabulary", "length", "turned off"])
def test_elsewhere_there_is_no_evaluation_by_enumeration(
    tmp_path: Path, actors: Actors, world_model: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "model": {"path": str(world_model)},
        "generators": {"max_model_len": 16},
        "publication": {"canary_tokens": 8},
        "evaluation": {"prompts": 0, "exact_every_updates": 1},
    }
    if other == "prompts":
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "red north"}\n')
        settings["prompts"] = {"source": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 8}
    elif other == "vocabulary":
        tiny_llama(tmp_path / "other", seed=0)
        settings["model"] = {"path": str(tmp_path / "other")}
        settings["prompts"] = {"source": "world", "max_prompt_tokens": 8}
        # The gold judge refuses other tokens before anything starts.
        settings["judging"] = {"judge": {"kind": "function", "path": "tests.fakes.functions:alike"}}
    elif other == "length":
        settings["sampling"] = {"completions_per_prompt": 2, "max_new_tokens": 5}
    else:
        settings["evaluation"]["exact_every_updates"] = 0
    assert train.run_training(config_of(tmp_path, **settings)) == 0
    assert _exact_lines(tmp_path) == []
    assert summary_of(tmp_path)["exploitability"] is None
    output = capsys.readouterr()
    said = "of completions of up to 4 tokens, and sampling.max_new_tokens is 5" in " ".join(
        (output.out + output.err).split()
    )
    assert said == (other == "length"), "everywhere else nobody would expect one"


@pytest.mark.parametrize(("kind", "told"), [("nash_pg", True), ("rloo", False), ("dpo", False)])
def test_the_staleness_law_is_announced_where_the_loss_has_an_opponent(
    tmp_path: Path, actors: Actors, capsys: pytest.CaptureFixture[str], kind: str, told: bool
) -> None:
    settings = {"learner": {"loss": {"kind": kind}}, "sampling": {"completions_per_prompt": 4, "max_new_tokens": 4}}
    assert train.run_training(config_of(tmp_path, **settings)) == 0
    output = capsys.readouterr()
    assert ("staleness limit: with tau 0.05" in output.out + output.err) == told
