"""Samples of a run: which answers they show, when, and what a resume keeps of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.errors import UsageError
from actors.records import Completion, Group, Judgement, Lease, Prompt
from actors.replay_buffer.buffer import Batch
from launch.output.metrics import MetricsWriter
from launch.output.samples import (
    Answer,
    Sample,
    SampleLog,
    describe,
    read_before_and_after,
    read_samples,
    sample_of,
    write_before_and_after,
)
from launch.settings.output import SamplesConfig


def completion(text: str, version: int = 3, *, finished: bool = True, opponent: bool = False) -> Completion:
    return Completion((5, 6), (-1.0, -1.0), (version, version + 1), text, finished, opponent)


def group(texts: dict[str, float], index: int = 0, **metadata: Any) -> Group:
    prompt = Prompt(f"p:{index}", (1,), f"prompt {index}", metadata=metadata)
    completions = tuple(completion(text) for text in texts)
    return Group(Lease(index, 0, prompt, 0, 0.0), completions, Judgement(tuple(texts.values())))


def batch(update: int, *groups: Group) -> Batch:
    return Batch(update, update, groups, (0,) * len(groups))


def test_a_sample_has_the_best_and_the_worst_answer_to_the_first_prompt():
    sample = sample_of(batch(9, group({"b": 0.5, "a": 0.9, "c": -1.0}), group({"z": 7.0}, 1)), None)
    assert sample == Sample(10, "p:0", "prompt 0", Answer("a", 0.9, 3, True), Answer("c", -1.0, 3, True))


def test_of_a_chat_the_last_message_is_shown():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    sample = sample_of(batch(0, group({"a": 1.0, "b": 0.0}, messages=chat)), None)
    assert sample is not None
    assert sample.prompt == "Why?"


def test_an_answer_without_an_end_counts_with_its_own_score_and_opponents_do_not_count():
    completions = (
        completion("short", finished=True),
        completion("long", finished=False),
        completion("of another", opponent=True),
    )
    judged = Group(Lease(0, 0, Prompt("p", (1,), "q"), 0, 0.0), completions, Judgement((0.2, 0.8, 0.9)))
    sample = sample_of(batch(0, judged), 0.0)
    assert sample is not None
    assert (sample.best.text, sample.worst) == ("short", Answer("long", 0.0, 3, False))


def test_an_update_without_groups_has_no_sample():
    assert sample_of(batch(0), None) is None


def test_the_log_shortens_texts_to_one_line_each_and_names_an_answer_without_an_end():
    sample = Sample(20, "p:0", "one\ntwo", Answer("a" * 50, 1.0, 0, True), Answer("b", 0.25, 0, False))
    assert describe(sample, 20).splitlines() == [
        "sample of update 20: one two",
        f"  best  1: {'a' * 16} ...",
        "  worst 0.25 (without an end): b",
    ]


def log(tmp_path: Path, said: list[str], *, resume_from: int = 0, **settings: Any) -> SampleLog:
    metrics = MetricsWriter(tmp_path, resume_from)
    config = SamplesConfig(**settings)
    return SampleLog(tmp_path, config, None, metrics, say=said.append, resume_from=resume_from)


def steps(tmp_path: Path) -> list[int]:
    return [sample.step for sample in read_samples(tmp_path)[0]]


def test_the_first_update_and_every_nth_leave_a_sample_in_the_file_and_in_the_log(tmp_path):
    said: list[str] = []
    samples = log(tmp_path, said, every_updates=4)
    for update in range(9):
        samples.add(batch(update, group({"a": 1.0, "b": 0.0})))
    assert steps(tmp_path) == [1, 4, 8]
    assert [text.split(":")[0] for text in said] == [f"sample of update {step}" for step in (1, 4, 8)]


def test_samples_stay_out_of_the_log_or_out_of_the_run_if_they_are_turned_off(tmp_path):
    said: list[str] = []
    log(tmp_path, said, log=False).add(batch(0, group({"a": 1.0})))
    assert (steps(tmp_path), said) == ([1], [])
    log(tmp_path / "off", said, every_updates=0).add(batch(0, group({"a": 1.0})))
    assert not (tmp_path / "off" / "samples.jsonl").exists()


def test_a_resumed_run_keeps_the_samples_up_to_its_checkpoint_alone(tmp_path):
    said: list[str] = []
    samples = log(tmp_path, said, every_updates=1)
    for update in range(5):
        samples.add(batch(update, group({f"old {update}": 1.0})))
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"step": 6, "pro')  # cut short by a crash
    again = log(tmp_path, said, every_updates=1, resume_from=3)
    again.add(batch(3, group({"new 3": 1.0})))
    assert [sample.best.text for sample in read_samples(tmp_path)[0]] == ["old 0", "old 1", "old 2", "new 3"]


def test_tensorboard_has_the_sample_as_text(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(tmp_path, [], every_updates=1).add(batch(0, group({"<b>best</b>": 1.0, "bad": 0.0})))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("samples")
    (text,) = event.tensor_proto.string_val
    assert event.step == 1
    assert b"best, score 1, version 3\n\n    <b>best</b>" in text
    assert events.PluginTagToContent("text").keys() == {"samples"}


def test_a_directory_without_samples_is_refused_with_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"is no directory of a run: there is no samples.jsonl"):
        read_samples(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UsageError, match=r"holds no samples.*samples.every_updates above 0"):
        read_samples(tmp_path)


def test_answers_before_and_after_training_are_those_of_the_final_evaluation(tmp_path):
    """A group of an evaluation holds the policy's completions, then as many of the starting policy's."""
    judged = group({"after one": 0.9, "after two": 0.8, "before one": 0.1, "before two": 0.2})
    write_before_and_after(tmp_path, [judged], None)
    (row,), damaged = read_before_and_after(tmp_path)
    assert damaged == 0
    assert (row.start.text, row.start.score, row.final.text, row.final.score) == ("before one", 0.1, "after one", 0.9)
    assert json.loads((tmp_path / "evaluation" / "answers.jsonl").read_text())["prompt"] == "prompt 0"


def test_a_run_without_an_evaluation_writes_no_answers(tmp_path):
    write_before_and_after(tmp_path, [], None)
    assert read_before_and_after(tmp_path) == ([], 0)
    assert not (tmp_path / "evaluation").exists()


def test_what_is_left_of_damaged_answers_is_read_and_the_rest_counted(tmp_path):
    """The last line of answers that were cut off ended `offbeat samples` with a traceback."""
    answer = {"text": "x", "score": 1.0, "version": 0, "finished": True}
    row = json.dumps({"prompt_id": "a:1", "prompt": "q", "start": answer, "final": answer})
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "answers.jsonl").write_bytes(f"{row}\n[]\n{row[:-9]}\n".encode() + b"\xff\n")
    answers, damaged = read_before_and_after(tmp_path)
    assert ([each.prompt for each in answers], damaged) == (["q"], 3)


def test_damaged_samples_are_counted(tmp_path):
    """They were left out without a word, and so was a line whose answer has no text."""
    answer = {"text": "x", "score": 1.0, "version": 0, "finished": True}
    row = {"step": 1, "prompt_id": "a:1", "prompt": "q", "best": answer, "worst": answer}
    lines = [row, {**row, "best": {**answer, "text": None}}, {**row, "best": 3}, {"step": 2}, [row]]
    text = "".join(f"{json.dumps(each)}\n" for each in lines)
    (tmp_path / "samples.jsonl").write_bytes(text.encode() + b"{\n\xff\n" + json.dumps(row)[:-9].encode())
    samples, damaged = read_samples(tmp_path)
    assert ([each.step for each in samples], damaged) == ([1], 7)


def test_a_prompt_in_a_template_is_shown_as_the_user_wrote_it():
    """`offbeat init` writes a chat model's markup into prompts.template, and samples showed it."""
    template = "<|user|>{prompt} Answer.<|end|>"
    asked = group({"b": 0.5, "a": 0.9})
    prompt = replace(asked.lease.prompt, text="<|user|>1+1? Answer.<|end|>")
    sample = sample_of(batch(0, replace(asked, lease=replace(asked.lease, prompt=prompt))), None, template)
    assert sample is not None
    assert sample.prompt == "1+1?"
