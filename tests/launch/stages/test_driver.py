"""The driver of the stages before the loop: when it evaluates, saves, stops and keeps what; its ranks are fakes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from actors.errors import RunError, UsageError
from launch.output.process import interrupts
from launch.settings.loading import load_config
from launch.settings.verbs import PREFERENCE
from launch.stages.config import PreferenceRunConfig, SftRunConfig
from launch.stages.driver import Prepared, StageRun
from launch.verify import run_verify
from learner.tensors.examples import TRAIN, VALIDATION, write_sequences
from tests.fakes.disks import FaultyDisk
from tests.fakes.learner import FakeRanks

EXAMPLES = [((1, 2), (3,))] * 20


def config_of(directory: Path, **training: Any) -> SftRunConfig:
    """Ten updates of two examples, and no checkpoint before the end unless asked for."""
    every = training.pop("checkpoint_every", 0)
    scratch = training.pop("scratch", {})
    return SftRunConfig.model_validate(
        {
            "output": str(directory / "run"),
            "model": {"path": "scratch", "scratch": scratch},
            "data": {"source": "unused"},
            "training": {"batch_size": 2, "evaluate_every": 4, **training},
            "checkpoints": {"every_updates": every},
        }
    )


def prepare(config: SftRunConfig, directory: Path) -> Prepared:
    (directory / "start").mkdir(exist_ok=True)
    write_sequences(directory / "data" / TRAIN, EXAMPLES)
    write_sequences(directory / "data" / VALIDATION, EXAMPLES[:3])
    return Prepared(directory / "start", 20, 3, ["d.jsonl:7: not JSON"])


def run(
    config: SftRunConfig | PreferenceRunConfig, ranks: FakeRanks, *, resume: bool = False, prepared: Any = prepare
) -> int:
    def start(*_: Any) -> contextlib.nullcontext[FakeRanks]:
        return contextlib.nullcontext(ranks)

    return StageRun(config, prepared, resume=resume, start=start).run()


def summary_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run" / "summary.json").read_text())


def final_of(directory: Path) -> int:
    """Update of the model in `final`."""
    return int((directory / "run" / "final" / "updates").read_text())


def checkpoints_of(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "run" / "checkpoints").iterdir())


# Chat templates


def test_the_final_model_carries_the_chat_template_that_it_was_trained_with(tmp_path: Path) -> None:
    from actors.data.text import load_tokenizer
    from tests.fakes.chat_styles import STYLES

    class WithTokenizer(FakeRanks):
        async def save_pretrained(self, directory: Path) -> None:
            await super().save_pretrained(directory)
            STYLES["qwen3"].tokenizer().save_pretrained(directory)

    model = {"path": "unused", "chat_template_kwargs": {"enable_thinking": False}}
    config = SftRunConfig.model_validate(config_of(tmp_path).model_dump() | {"model": model})
    assert run(config, WithTokenizer([5.0, 4.0, 3.0, 3.5])) == 0
    final = load_tokenizer(str(tmp_path / "run" / "final"))
    chat = [{"role": "user", "content": "red"}]
    written = final.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert written.endswith("assistant\n<think>\n\n</think>\n\n")


# Schedules


def test_evaluation_is_at_the_start_every_so_many_updates_and_at_the_end(tmp_path: Path) -> None:
    ranks = FakeRanks([5.0, 4.0, 3.0, 3.5])
    assert run(config_of(tmp_path), ranks) == 0
    told = [call for call in ranks.calls if call[0] in ("advance", "evaluate")]
    assert told == [
        ("evaluate",),
        *[("advance", 4), ("evaluate",)] * 2,
        *[("advance", 2), ("evaluate",)],
    ]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    assert {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line} == {4: 4, 8: 3, 10: 3.5}
    assert final_of(tmp_path) == 10


def test_without_a_schedule_it_is_at_the_start_and_the_end(tmp_path: Path) -> None:
    ranks = FakeRanks([5.0, 4.0])
    run(config_of(tmp_path, evaluate_every=0, epochs=2.5), ranks)
    told = [call for call in ranks.calls if call[0] in ("advance", "evaluate")]
    assert told == [("evaluate",), ("advance", 10), ("advance", 10), ("advance", 5), ("evaluate",)]


def test_checkpoints_are_written_on_schedule_and_at_the_end_and_the_newest_are_kept(tmp_path: Path) -> None:
    ranks = FakeRanks([1.0])
    run(config_of(tmp_path, checkpoint_every=3, evaluate_every=0), ranks)
    kinds = [call for call in ranks.calls if call[0] in ("advance", "save")]
    assert kinds == [*[("advance", 3), ("save",)] * 3, ("advance", 1), ("save",)]
    assert checkpoints_of(tmp_path) == ["latest", "update-0000009", "update-0000010"]


def test_a_checkpoint_that_is_due_at_the_end_is_written_once(tmp_path: Path) -> None:
    ranks = FakeRanks([1.0])
    run(config_of(tmp_path, checkpoint_every=5, evaluate_every=0), ranks)
    assert sum(call[0] == "save" for call in ranks.calls) == 2


# Patience


def test_patience_ends_training_and_keeps_the_best_model(tmp_path: Path) -> None:
    ranks = FakeRanks([9.0, 3.0, 2.0, 2.5, 2.0, 1.0])
    assert run(config_of(tmp_path, evaluate_every=1, patience=2), ranks) == 0
    # Updates 1, 2 are better, 3 and 4 (a tie) are not.
    assert (ranks.updates, final_of(tmp_path)) == (4, 2)
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["updates"], summary["total_updates"]) == ("completed", 4, 10)
    assert (summary["best_held_out_loss"], summary["best_update"], summary["waited"]) == (2.0, 2, 2)
    assert summary["held_out"] == {"loss": 2.0}
    assert checkpoints_of(tmp_path) == ["latest", "update-0000004"]


def test_patience_counts_from_the_last_better_evaluation(tmp_path: Path) -> None:
    ranks = FakeRanks([9.0, 3.0, 4.0, 2.0, 4.0, 1.0, 4.0, 4.0])
    run(config_of(tmp_path, evaluate_every=1, patience=2), ranks)
    assert (ranks.updates, final_of(tmp_path)) == (7, 5)


def test_without_patience_the_last_model_is_kept_and_the_best_is_told(tmp_path: Path) -> None:
    run(config_of(tmp_path), FakeRanks([9.0, 1.0, 2.0, 3.0]))
    assert final_of(tmp_path) == 10
    assert (summary_of(tmp_path)["best_held_out_loss"], summary_of(tmp_path)["best_update"]) == (1.0, 4)


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    run(config_of(tmp_path, patience=3), FakeRanks([9.0, math.nan, 2.0, math.nan]))
    assert final_of(tmp_path) == 8
    assert summary_of(tmp_path)["best_held_out_loss"] == 2.0


def test_where_no_evaluation_was_a_number_the_last_model_is_kept(tmp_path: Path) -> None:
    run(config_of(tmp_path, patience=2), FakeRanks([math.nan]))
    assert final_of(tmp_path) == 8
    summary = summary_of(tmp_path)
    assert (summary["best_update"], summary["held_out"]) == (None, {"loss": None}), "JSON has no NaN"


def test_patience_with_nothing_held_out_is_refused(tmp_path: Path) -> None:
    def none_held_out(config: SftRunConfig, directory: Path) -> Prepared:
        return Prepared(directory, 20, 0, [])

    with pytest.raises(UsageError, match=r"training.patience 2 waits .* none of 20 examples is held out"):
        run(config_of(tmp_path, patience=2), FakeRanks(), prepared=none_held_out)


def test_calibration_with_nothing_held_out_is_refused(tmp_path: Path) -> None:
    def none_held_out(config: PreferenceRunConfig, directory: Path) -> Prepared:
        return Prepared(directory, 20, 0, [])

    overrides = [f"output={tmp_path / 'run'}", "training.patience=null"]
    config = load_config("embedded", overrides, PREFERENCE)
    with pytest.raises(UsageError, match=r"preference.calibrate needs held-out pairs, and none of 20 is held out"):
        run(config, FakeRanks(), prepared=none_held_out)


# What a run leaves


def test_the_summary_says_what_was_trained_on_and_what_came_of_it(tmp_path: Path) -> None:
    run(config_of(tmp_path), FakeRanks([5.0, 4.0, 3.0, 3.5]))
    summary = summary_of(tmp_path)
    assert summary.pop("wall_seconds") > 0
    assert "torch" in summary.pop("versions")
    assert summary == {
        "status": "completed",
        "error": None,
        "name": "sft",
        "output": str(tmp_path / "run"),
        "total_updates": 10,
        "train_examples": 20,
        "held_out_examples": 3,
        "skipped_rows": 1,
        "updates": 10,
        "loss": 0.1,
        "tokens": 100,
        "held_out_at_start": {"loss": 5.0},
        "held_out": {"loss": 3.5},
        "best_held_out_loss": 3.0,
        "best_update": 8,
        "waited": 1,
    }


def test_without_held_out_examples_the_run_completes_and_says_so(tmp_path: Path) -> None:
    assert run(config_of(tmp_path), FakeRanks()) == 0
    summary = summary_of(tmp_path)
    assert (summary["held_out"], summary["best_update"]) == ({}, None)
    assert final_of(tmp_path) == 10


def test_a_run_that_fails_says_why_and_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    def fail(updates: int) -> None:
        if updates > 4:
            raise RunError("the disk is gone")

    with pytest.raises(RunError, match="the disk is gone"):
        run(config_of(tmp_path, checkpoint_every=4), FakeRanks([1.0], fail))
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["error"], summary["updates"]) == ("failed", "the disk is gone", 4)
    assert checkpoints_of(tmp_path) == ["latest", "update-0000004"]
    assert not (tmp_path / "run" / "final").exists()


# Interrupts and resuming


def interrupting(at: int, times: int = 1, number: int = signal.SIGINT) -> FakeRanks:
    def interrupt(updates: int) -> None:
        if updates == at:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return FakeRanks([5.0, 4.0, 3.0, 2.0], interrupt)


@pytest.mark.parametrize("number", interrupts.NUMBERS)
def test_an_interrupt_ends_the_steps_under_way_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(signal.SIGINT)
    assert run(config_of(tmp_path), interrupting(at=4, number=number)) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["updates"], summary["error"]) == ("interrupted", 4, None)
    assert checkpoints_of(tmp_path) == ["latest", "update-0000004"]
    assert not (tmp_path / "run" / "final").exists()


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(tmp_path), interrupting(at=4, times=2))
    assert signal.getsignal(signal.SIGINT) is handler
    summary = summary_of(tmp_path)
    assert summary["status"] == "interrupted"
    assert summary["error"] == "interrupted; nothing to save"  # no step was reported
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("moment", ["ready", "evaluate"])
def test_an_interrupt_before_the_first_step_ends_at_once_as_there_is_nothing_to_save(
    tmp_path: Path, moment: str
) -> None:
    """The start of large models takes minutes, and so may the first evaluation."""

    class Starting(FakeRanks):
        pass

    async def wait(self: FakeRanks) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    setattr(Starting, moment, wait)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(tmp_path), Starting([5.0]))
    assert (summary_of(tmp_path)["status"], summary_of(tmp_path)["error"]) == (
        "interrupted",
        "interrupted; nothing to save",
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_resumed_run_goes_on_where_it_was_with_what_it_knew(tmp_path: Path) -> None:
    run(config_of(tmp_path), interrupting(at=4))
    # What a killed process had written after its checkpoint is taken back.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 5, "loss": 7.0}\n')
    ranks = FakeRanks([3.0, 2.0])
    assert run(config_of(tmp_path), ranks, resume=True) == 0
    assert [call for call in ranks.calls if call[0] in ("load", "advance", "evaluate")] == [
        ("load",),
        *[("advance", 4), ("evaluate",)],
        *[("advance", 2), ("evaluate",)],
    ]
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["updates"], summary["tokens"]) == ("completed", 10, 100)
    assert (summary["held_out_at_start"], summary["best_update"]) == ({"loss": 5.0}, 10)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))


def test_resuming_a_completed_run_trains_nothing(tmp_path: Path) -> None:
    run(config_of(tmp_path), FakeRanks([1.0]))
    ranks = FakeRanks([1.0])
    assert run(config_of(tmp_path), ranks, resume=True) == 0
    assert {"load", "save_pretrained"} <= {call[0] for call in ranks.calls}
    assert not {"advance", "evaluate", "save"} & {call[0] for call in ranks.calls}
    assert final_of(tmp_path) == 10


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 4}, r"training.batch_size \(was 2, is 4\)"),
        ({"epochs": 2.0}, r"training.epochs \(was 1.0, is 2.0\)"),
        ({"seed": 1}, r"training.seed \(was 0, is 1\)"),
        ({"scratch": {"layers": 2}}, r"saved: model.scratch.layers \(was 4, is 2\);"),
    ],
)
def test_a_resume_with_another_order_or_model_is_refused(tmp_path: Path, change: dict, told: str) -> None:
    run(config_of(tmp_path), interrupting(at=4))
    with pytest.raises(UsageError, match=told):
        run(config_of(tmp_path, **change), FakeRanks(), resume=True)
    assert checkpoints_of(tmp_path) == ["latest", "update-0000004"], "a refused resume removes nothing"


def test_a_resume_with_other_examples_is_refused(tmp_path: Path) -> None:
    run(config_of(tmp_path), interrupting(at=4))

    def others(config: SftRunConfig, directory: Path) -> Prepared:
        prepared = prepare(config, directory)
        write_sequences(directory / "data" / TRAIN, EXAMPLES[1:])
        return prepared

    with pytest.raises(UsageError, match="changed since it was saved: the examples"):
        run(config_of(tmp_path), FakeRanks(), resume=True, prepared=others)


def test_what_may_change_on_a_resume_may(tmp_path: Path) -> None:
    run(config_of(tmp_path), interrupting(at=4))
    assert run(config_of(tmp_path, evaluate_every=5, patience=1), FakeRanks([1.0]), resume=True) == 0


def test_a_resume_without_a_checkpoint_starts_over_from_a_new_start(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        run(config_of(tmp_path), interrupting(at=4, times=2))
    (tmp_path / "run" / "start" / "of_other_data").touch()
    ranks = FakeRanks([1.0])
    assert run(config_of(tmp_path), ranks, resume=True) == 0
    assert ("load",) not in ranks.calls
    assert not (tmp_path / "run" / "start" / "of_other_data").exists()


# Notes


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"batch_size": 20, "epochs": 20}, []),
        (
            {"batch_size": 41, "epochs": 2},
            ["training.batch_size 41 exceeds the 20 training examples: an update trains on an example up to 3 times"],
        ),
        ({"epochs": 21}, ["training.epochs 21 are 210 updates over 20 examples", "set training.patience"]),
        ({"epochs": 21, "patience": 1}, []),
    ],
)
def test_examples_that_are_repeated_more_often_than_is_usual_are_told(training, told, tmp_path, capsys) -> None:
    run(config_of(tmp_path, **training), FakeRanks([1.0]))
    said = " ".join(capsys.readouterr().err.split())
    assert all(words in said for words in told), said
    assert ("exceeds the" in said or "by heart" in said) == bool(told)


# Refusals


def test_a_refused_run_leaves_its_directory_to_the_next_attempt(tmp_path: Path) -> None:
    def refuse(config: SftRunConfig, directory: Path) -> Prepared:
        prepare(config, directory)
        raise UsageError("the data are malformed")

    with pytest.raises(UsageError, match="the data are malformed"):
        run(config_of(tmp_path), FakeRanks(), prepared=refuse)
    assert run(config_of(tmp_path), FakeRanks([1.0])) == 0


def test_a_directory_with_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(config_of(tmp_path), FakeRanks([1.0]))
    with pytest.raises(UsageError, match="is not empty"):
        run(config_of(tmp_path), FakeRanks([1.0]))
    assert final_of(tmp_path) == 10


def test_a_run_older_than_the_held_out_split_goes_on_with_its_share(tmp_path: Path) -> None:
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]))
    checkpoint = tmp_path / "run" / "checkpoints" / "update-0000010"
    (checkpoint / "offbeat-manifest.json").unlink()
    state = checkpoint / "run_state.json"
    saved = json.loads(state.read_text())
    del saved["fixed"]["data.validation_split"], saved["manifest"]
    state.write_text(json.dumps(saved))
    asked: list[str] = []

    def noted(config: SftRunConfig, directory: Path) -> Prepared:
        asked.append(config.data.validation_split)
        return prepare(config, directory)

    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]), resume=True, prepared=noted)
    assert asked == ["none"]


def test_a_stage_that_diverges_is_stopped_after_a_checkpoint_if_it_is_to(tmp_path: Path) -> None:
    """The fake's gradient norms are 1 and its losses 1, 1/2, 1/3 and so on: over 0.3 at updates 1 to 3."""
    config = config_of(tmp_path)
    band = {"max_loss": 0.3, "action": "stop"}
    stopped = type(config).model_validate({**config.model_dump(exclude_unset=True), "divergence": band})
    with pytest.raises(RunError, match=r"loss is 0\.3333 at update 3, over 0\.3, for 3 updates in a row.*a checkpoint"):
        run(stopped, FakeRanks())
    assert summary_of(tmp_path)["status"] == "failed"
    assert checkpoints_of(tmp_path)


# Faults of the disk


def test_a_disk_that_is_full_at_any_moment_ends_the_stage_with_a_sentence_and_it_goes_on_once_there_is_space(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path, checkpoint_every=8)
    losses, directory = [5.0, 4.0, 3.0, 3.5], tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        disk = FaultyDisk(directory, errno.ENOSPC, patch)
        assert run(config, FakeRanks(losses)) == 0
    for number in range(0, len(disk.operations), 7):
        shutil.rmtree(directory)
        with pytest.MonkeyPatch.context() as patch:
            full = FaultyDisk(directory, errno.ENOSPC, patch)
            full.first = number
            with pytest.raises(RunError) as error:
                run(config, FakeRanks(losses))
        moment = f"operation {number}, {full.refused}: {error.value}"
        assert re.search(rf"{directory}.*No space left on device; free space there, (then|or)", str(error.value)), (
            moment
        )
        resume = (directory / "config.yaml").exists()
        assert run(config, FakeRanks(losses), resume=resume) == 0, moment
        assert summary_of(tmp_path)["updates"] == 10, moment
        assert final_of(tmp_path) == 10, moment
        assert run_verify(directory) == 0, moment


def test_a_directory_that_is_taken_from_a_stage_is_missed_after_the_steps_under_way(tmp_path: Path) -> None:
    def take(updates: int) -> None:
        if updates == 4:
            (tmp_path / "run").rename(tmp_path / "elsewhere")

    with pytest.raises(RunError, match=r"run's directory .*run is not the one that this run began in: it is gone"):
        run(config_of(tmp_path), FakeRanks(on_advance=take))
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    assert run(config_of(tmp_path), FakeRanks(), resume=True) == 0
