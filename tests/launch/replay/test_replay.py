"""What a replay is made of: its configuration, where it starts, and the batches it feeds to the learner."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from actors.errors import RunError, UsageError
from actors.records import Completion, Group, Judgement, Lease, Prompt
from actors.replay_buffer.buffer import Batch
from launch.output.journal import Journal, learning_settings
from launch.output.journal_reader import JournalReader
from launch.replay.recorded import recorded_config
from launch.replay.replay import (
    Request,
    Start,
    replay_config,
    starting_point,
    train_again,
    within,
    without_opponents,
)
from launch.replay.report import changed_settings
from launch.settings.loading import dump_config
from launch.settings.run import RunConfig
from learner.backend import checkpoints
from learner.losses.config import PairLossConfig
from tests.fakes.generators import FakeGenerator, judged_group
from tests.fakes.learner import FakeLearner, FakeStats
from tests.launch.run.loops import loop_of, run
from tests.settings import nested

GAMES: dict[str, Any] = {
    "learner": {"loss": {"kind": "nash_pg", "tau": 0.2}, "correction": {"opponents": "token", "player_cap": 3.0}},
    "opponent": {"kind": "mixture", "beta": 0.5, "max_staleness": 1},
    "replay": {"max_staleness": 3},
}


def recorded_in(directory: Path, **sections: Any) -> RunConfig:
    """The configuration of a run in `directory`."""
    config = RunConfig.model_validate(nested({"model": {"path": "unused"}, "output": str(directory), **sections}))
    (directory / "config.yaml").write_text(dump_config(config))
    return recorded_config(directory)


# ---------------------------------------------------------------- configuration


def test_a_replay_is_the_run_s_own_configuration_in_the_next_free_directory(tmp_path: Path) -> None:
    recorded = recorded_in(tmp_path, **GAMES)
    given = replay_config(recorded, Request(tmp_path))
    assert given == recorded.model_copy(update={"output": str(tmp_path / "replay")})
    (tmp_path / "replay").mkdir()
    assert replay_config(recorded, Request(tmp_path)).output == str(tmp_path / "replay-2")
    assert replay_config(recorded, Request(tmp_path, output=tmp_path / "there")).output == str(tmp_path / "there")


def test_settings_of_the_learner_and_of_where_it_runs_are_changed(tmp_path: Path) -> None:
    settings = ("learner.optimizer.lr=0.5", "cluster.num_cpus=1")
    given = replay_config(recorded_in(tmp_path), Request(tmp_path, settings=settings, loss="slic"))
    assert (given.learner.optimizer.lr, given.cluster.num_cpus, given.learner.loss.kind) == (0.5, 1, "slic")


def test_a_replay_takes_the_recorded_reference_log_probs_or_lets_its_learner_hold_the_reference(tmp_path: Path) -> None:
    """A loss that needs the whole distribution of the reference says how it can be had."""
    recorded = recorded_in(tmp_path, reference={"count": 2})
    assert replay_config(recorded, Request(tmp_path)).reference.count == 2
    assert replay_config(recorded, Request(tmp_path, settings=("reference.count=0",))).reference.count == 0
    with pytest.raises(UsageError, match=r"need its whole distribution in every update; set reference\.count to 0"):
        replay_config(recorded, Request(tmp_path, loss="nash_pg"))
    given = replay_config(recorded, Request(tmp_path, loss="nash_pg", settings=("reference.count=0",)))
    assert given.learner.loss.kind == "nash_pg"


def test_a_replay_cannot_do_without_a_reference_that_no_actor_recorded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^reference\.count 1 needs .* recorded none, .*; leave it out"):
        replay_config(recorded_in(tmp_path), Request(tmp_path, settings=("reference.count=1",)))


def test_the_report_of_a_replay_says_that_the_reference_was_elsewhere(tmp_path: Path) -> None:
    recorded = learning_settings(recorded_in(tmp_path, reference={"count": 2}))
    held = learning_settings(RunConfig.model_validate({"model": {"path": "unused"}}))
    assert "reference" not in held
    assert changed_settings(recorded, held) == {"reference": ("recorded with the completions", None)}


@pytest.mark.parametrize("kind", ["dpo", "ipo", "slic", "rloo", "online_ipo", "ipo_md"])
def test_every_loss_can_take_the_place_of_one_on_games(tmp_path: Path, kind: str) -> None:
    """What the new loss does not read goes back to its default; the rest stays."""
    recorded = recorded_in(tmp_path, **GAMES)
    given = replay_config(recorded, Request(tmp_path, loss=kind))
    old, new = recorded.learner.loss, given.learner.loss
    assert new.kind == kind
    if new.on_pairs:
        assert new == PairLossConfig(kind=kind)
    elif new.opponent is None:
        assert (new.tau, new.correction.player_cap) == (0.2, 3.0)
        assert not hasattr(new.correction, "opponents")
    else:
        assert new == old.model_copy(update={"kind": kind})


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            "sampling.temperature=0.5",
            r"only learner\.\*, cluster\.\* and reference\.\* can be set; other settings",
        ),
        ("updates=5", r"--set updates=5: only learner"),
        ("learnerr.seed=1", "only learner"),
        ("learner.loss.kind=ipo", r"choose the kind of loss with --loss KIND"),
        ("learner={}", r"choose the kind of loss with --loss KIND"),
        ("learner.optimizer.lrr=1", r"learner\.optimizer\.lrr: no such setting; nearest: learner\.optimizer\.lr"),
    ],
)
def test_what_cannot_be_changed_after_the_fact_is_refused(tmp_path: Path, setting: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replay_config(recorded_in(tmp_path), Request(tmp_path, settings=(setting,)))


def test_an_unknown_loss_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"learner\.loss\.kind: given 'kto'; allowed: dpo \| ipo"):
        replay_config(recorded_in(tmp_path), Request(tmp_path, loss="kto"))


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no run: it has no config\.yaml; give the output directory of"):
        recorded_config(tmp_path)


# ---------------------------------------------------------------- where it starts


def checkpoint(run_dir: Path, updates: int) -> Path:
    root, tag = run_dir / "checkpoints", f"update-{updates:07d}"
    stage = checkpoints.begin(root, tag)
    for part in (checkpoints.ENGINE, checkpoints.MODEL):
        (stage / part).mkdir()
        (stage / part / "data").write_text("")
    checkpoints.write_state(stage, {"updates": updates})
    return checkpoints.commit(root, tag, keep=9)


def test_a_whole_journal_is_replayed_from_the_start_of_the_run(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    assert starting_point(Request(tmp_path), 0, 8) == Start(0, None)


def test_a_journal_without_its_beginning_is_replayed_from_the_oldest_checkpoint_it_covers(tmp_path: Path) -> None:
    _, four, eight = (checkpoint(tmp_path, updates) for updates in (2, 4, 8))
    assert starting_point(Request(tmp_path), 3, 8) == Start(4, four)
    assert starting_point(Request(tmp_path), 4, 8) == Start(4, four)
    assert starting_point(Request(tmp_path, start="update-0000008"), 3, 8) == Start(8, eight)


def test_a_checkpoint_that_the_journal_does_not_go_on_from_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    told = r"batches of updates 4 to 8, and no checkpoint to start from \(found: update-0000002\); keep more"
    for start in (None, "update-0000002"):
        with pytest.raises(UsageError, match=told):
            starting_point(Request(tmp_path, start=start), 3, 8)
    with pytest.raises(UsageError, match=r"--from update-0000007: there is no such checkpoint in .*; give the name"):
        starting_point(Request(tmp_path, start="update-0000007"), 0, 8)


# ---------------------------------------------------------------- batches


def aged(update: int, ages: list[int]) -> Batch:
    """A batch with a group of each age."""
    prompt = Prompt("p", (1, 2, 3), "p")
    groups = [judged_group(Lease(n, 0, prompt, 0, 0.0), (update - age,), (update,)) for n, age in enumerate(ages)]
    return Batch(update, update, tuple(groups), tuple(ages))


def test_groups_over_the_bound_are_left_out() -> None:
    batch = aged(5, [2, 0, 1, 3])
    kept = within(batch, 1)
    assert [(group.lease.index, age) for group, age in zip(kept.groups, kept.staleness, strict=True)] == [
        (1, 0),
        (2, 1),
    ]
    assert (kept.update, kept.version) == (5, 5)
    assert within(batch, None) == within(batch, 3) == batch


def test_without_opponents_the_policy_s_completions_keep_their_own_judgement() -> None:
    own = [Completion((5 + n,), (-1.0,), (0,), "", True, opponent=n in (1, 2)) for n in range(4)]
    table = tuple(tuple(float(10 * i + j) for j in range(4)) for i in range(4))
    group = Group(Lease(0, 0, Prompt("p", (1,), "p"), 0, 0.0), tuple(own), Judgement((0.1, 0.2, 0.3, 0.4), table))
    kept = without_opponents(group)
    assert kept.completions == (own[0], own[3])
    assert kept.judgement == Judgement((0.1, 0.4), ((0.0, 3.0), (30.0, 33.0)))
    scalar = without_opponents(replace(group, judgement=Judgement((0.1, 0.2, 0.3, 0.4))))
    assert scalar.judgement == Judgement((0.1, 0.4))


@dataclass
class Stats(FakeStats):
    update: int = 0


class Learner(FakeLearner):
    async def update(self, items: Any, measure_step: bool = False) -> Stats:
        await super().update(items, measure_step)
        return Stats(update=len(self.batches))


def trained_again(batches: Any, config: RunConfig, **options: Any) -> tuple[Learner, Any, list[int]]:
    learner, steps = Learner(0.0), []

    def on_update(step: int, values: dict[str, float]) -> None:
        assert values["loss"] == 0.5
        steps.append(step)

    counts = asyncio.run(train_again(learner, batches, config, on_update, **options))
    return learner, counts, steps


@pytest.mark.parametrize(
    ("settings", "replay"),
    [
        ({}, {"max_staleness": 2}),
        ({"learner": {"loss": {"kind": "nash_pg"}}, "opponent": {"max_staleness": 0}}, {"max_staleness": 3}),
        ({}, {"order": "ready", "max_reuse": 2, "max_staleness": 2}),
        ({}, {"updates_per_publish": 3}),
    ],
    ids=["pairs", "games against opponents drawn apart", "groups consumed twice", "several updates per version"],
)
def test_the_learner_is_given_what_the_loop_gave_it(tmp_path: Path, settings: dict, replay: dict) -> None:
    """The loop and its journal around fakes, then a learner fed from the files alone."""
    recorded = Learner()
    batches: list[Batch] = []
    generator = FakeGenerator("a", opponents=2 if settings else 0)
    loop = loop_of([generator], recorded, settings=nested(settings), keep=batches.append, **replay)
    run(loop)
    journal = Journal(tmp_path, loop.config, lambda message: None)
    for batch in batches:
        journal.add(batch)
    journal.flush()
    learner, counts, steps = trained_again(JournalReader(tmp_path).batches(0), loop.config)
    assert learner.batches == recorded.batches
    assert steps == list(range(1, 13))
    assert (counts.trained, counts.groups, counts.left_out) == (12, sum(map(len, recorded.batches)), 0)


def test_an_update_that_nothing_is_left_of_is_skipped_like_an_empty_one() -> None:
    config = RunConfig.model_validate({"model": {"path": "unused"}, "replay": {"max_staleness": 4}})
    batches = [aged(4, [0, 1]), aged(5, []), aged(6, [2, 3]), aged(7, [4, 0])]
    learner, counts, steps = trained_again(batches, config, max_staleness=1)
    assert [len(items) for items in learner.batches] == [2, 1]
    assert steps == [5, 8]
    assert (counts.trained, counts.groups, counts.left_out) == (2, 3, 3)


def test_a_group_over_the_run_s_own_bound_stops_the_replay_as_it_would_the_run() -> None:
    config = RunConfig.model_validate({"model": {"path": "unused"}, "replay": {"max_staleness": 1}})
    with pytest.raises(RunError, match=r"staleness 2 reached the learner, over replay\.max_staleness 1"):
        trained_again([aged(4, [0, 2])], config)


def test_a_loss_on_pairs_is_fed_with_the_policy_s_completions_alone() -> None:
    batch = aged(0, [0])
    drawn = Completion((9,), (-1.0,), (0,), "", True, opponent=True)
    (group,) = batch.groups
    assert group.judgement is not None
    judgement = Judgement((*group.judgement.scores, 9.0))
    group = replace(group, completions=(*group.completions, drawn), judgement=judgement)
    config = RunConfig.model_validate({"model": {"path": "unused"}})
    learner, _, _ = trained_again([replace(batch, groups=(group,))], config)
    ((pair,),) = learner.batches
    assert (pair.chosen, pair.rejected) == (group.completions[1], group.completions[0])
