"""Metrics: one line per step, the same numbers in TensorBoard, and a resume that leaves no trace of what it redoes."""

import json
import math
import os
import re
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actors.errors import RunError
from launch.output.metrics import TAGS, MetricsWriter


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def scalars(directory, tag):
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_each_step_is_one_line_that_is_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 0.5, "accuracy": 0.75})
    assert [(line["step"], line["loss"], line["accuracy"]) for line in lines(tmp_path)] == [(1, 0.5, 0.75)]
    writer.close()


def test_tensorboard_holds_the_same_numbers(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 0.5})
    writer.write(2, {"loss": 0.25})
    writer.close()
    assert scalars(tmp_path, "loss/train") == [(1, 0.5), (2, 0.25)]


def test_tensorboard_has_the_names_of_the_field_and_the_file_its_own(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"score_mean": 0.5, "lr": 0.25, "held_out_loss": 2.0, "family_0": 1.0})
    writer.close()
    assert set(lines(tmp_path)[0]) == {"step", "time", "score_mean", "lr", "held_out_loss", "family_0"}
    for name, value in (("reward/mean", 0.5), ("lr", 0.25), ("eval/loss", 2.0), ("family_0", 1.0)):
        assert scalars(tmp_path, name) == [(1, value)]


def test_no_two_metrics_share_a_tag_and_the_documents_examples_are_tags():
    assert len(set(TAGS.values())) == len(TAGS)
    page = " ".join((Path(__file__).parents[3] / "docs" / "outputs.md").read_text().split())
    examples = dict(re.findall(r"`(\w+)` is `(\w+/\w+)`", page))
    assert examples == {name: TAGS[name] for name in ("loss", "score_mean", "kl_players")}
    assert "`TAGS` in `launch/output/metrics.py` lists all" in page


def test_a_resume_knows_the_newest_value_of_every_metric_that_is_kept(tmp_path):
    writer = MetricsWriter(tmp_path)
    assert writer.last == {}
    writer.write(1, {"lr": 0.5, "held_out_loss": 3.0})
    writer.write(2, {"lr": 0.25})
    writer.write(3, {"lr": 0.125})
    writer.close()
    last = MetricsWriter(tmp_path, resume_from=2).last
    assert (last["step"], last["lr"], last["held_out_loss"]) == (2, 0.25, 3.0)


def test_a_resume_takes_back_what_was_written_after_the_checkpoint(tmp_path):
    first = MetricsWriter(tmp_path)
    for step in (1, 2, 3, 4):
        first.write(step, {"loss": float(step)})
    first.close()
    second = MetricsWriter(tmp_path, resume_from=2)
    second.write(3, {"loss": 30.0})
    second.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert scalars(tmp_path, "loss/train") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    writer = MetricsWriter(tmp_path, resume_from=5)
    writer.write(2, {"loss": 2.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_resume_keeps_what_follows_a_damaged_line(tmp_path):
    """One damaged line made a resume remove all later ones, up to the checkpoint."""
    whole = [f'{{"step": {step}, "loss": {step}.0}}\n' for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join([whole[0], "\0\0\n", *whole[1:3], "{\n", whole[3]]))
    writer = MetricsWriter(tmp_path, resume_from=3)
    assert writer.last["loss"] == 3.0
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join([whole[0], "\0\0\n", *whole[1:3]])


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    MetricsWriter(tmp_path).close()
    assert lines(tmp_path) == []


def test_nan_is_null_in_json_and_nan_in_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": math.nan, "norm": math.inf})
    writer.close()
    (line,) = lines(tmp_path)
    assert (line["loss"], line["norm"]) == (None, None)
    ((step, value),) = scalars(tmp_path, "loss/train")
    assert step == 1
    assert math.isnan(value)


def test_an_unwritable_directory_says_which_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/metrics\.jsonl.*--output"):
        MetricsWriter(tmp_path / "file")


def test_a_full_disk_is_a_run_error_and_closing_does_not_hide_it(tmp_path):
    """Every write to /dev/full fails with `No space left on device`."""
    writer = MetricsWriter(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._file.fileno())
    os.close(full)
    with pytest.raises(RunError, match="No space left on device"):
        writer.write(1, {"loss": 1.0})
    writer.close()


def test_tensorboard_only_watches_its_full_disk_is_told_once_and_the_lines_go_on(tmp_path):
    told = []
    writer = MetricsWriter(tmp_path, say=told.append)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._events._writer._writer.fileno())
    os.close(full)
    for step in (1, 2):
        writer.write(step, {"loss": 1.0})
        writer.write_text(step, "samples", "text")
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    (text,) = told
    assert text.startswith(
        f"warning: cannot write {tmp_path / 'tensorboard'}: No space left on device; the run goes on"
    )
    assert "free space there" in text


def test_a_place_where_tensorboard_cannot_write_is_told_at_the_start_and_a_resume_writes_there_again(tmp_path):
    told = []
    (tmp_path / "tensorboard").write_text("in its way")
    first = MetricsWriter(tmp_path, say=told.append)
    first.write(1, {"loss": 1.0})
    first.close()
    assert len(told) == 1
    (tmp_path / "tensorboard").unlink()
    second = MetricsWriter(tmp_path, resume_from=1, say=told.append)
    second.write(2, {"loss": 2.0})
    second.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert scalars(tmp_path, "loss/train") == [(2, 2.0)]
    assert len(told) == 1


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_changes_neither_order_nor_distances(tmp_path, monkeypatch, jump):
    """TensorBoard reads the parts of a run in the order of their names, which hold the second of their start."""
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    first = MetricsWriter(tmp_path)
    first.write(1, {"loss": 1.0})
    shift[0] = jump
    for step in (2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    times = [line["time"] for line in lines(tmp_path)]
    assert times == sorted(times)
    assert times[-1] - times[0] < 1000
    second = MetricsWriter(tmp_path, resume_from=2)
    second.write(3, {"loss": 30.0})
    second.close()
    assert scalars(tmp_path, "loss/train") == [(1, 1.0), (2, 2.0), (3, 30.0)]
