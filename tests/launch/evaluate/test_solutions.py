"""Pairs of sampled solutions: correct over incorrect of the same prompt, as `offbeat dpo` reads them."""

import json
from dataclasses import asdict, replace

import pytest

from actors.data.preferences import read_preferences
from actors.errors import RunError, UsageError
from launch.evaluate.solutions import Solution, pairs_of, require_targets, write_jsonl


def solution(response, correct, prompt="1+1=", **changes):
    return replace(Solution(f"id of {prompt}", prompt, response, correct, float(correct or 0), True), **changes)


def test_every_correct_response_is_paired_with_every_incorrect_one_of_its_prompt():
    found = [
        solution("2", True), solution("two", True), solution("3", False), solution("2", True), solution("3", False),
        solution("4", True, prompt="2+2="), solution("5", False, prompt="3+3="),
    ]  # fmt: skip
    assert pairs_of(found, 10, 0) == [
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        {"prompt": "1+1=", "chosen": "two", "rejected": "3"},
    ]


def test_what_was_cut_or_is_empty_makes_no_pair():
    found = [solution("2", True), solution("2 or", False, finished=False), solution(" ", False)]
    assert pairs_of(found, 10, 0) == []


def test_the_cap_draws_by_seed_and_prompt_alone():
    found = [solution(str(n), n < 4) for n in range(8)]
    others = [solution(str(n), n < 4, prompt="7+7=") for n in range(8)]
    drawn = pairs_of(found, 5, 0)
    assert len(drawn) == len({json.dumps(row) for row in drawn}) == 5
    assert all(int(row["chosen"]) < 4 <= int(row["rejected"]) for row in drawn)
    assert pairs_of([*others, *found], 5, 0)[5:] == drawn
    assert pairs_of(found, 5, 1) != drawn
    assert len(pairs_of(found, 100, 0)) == 16


def test_pairs_are_read_by_the_reader_of_preferences(tmp_path):
    chat = [{"role": "user", "content": "1+1="}]
    for name, prompt in (("text", "1+1="), ("chat", chat)):
        found = [solution("2\n#### 2", True), solution("3", False)]
        path = tmp_path / "new" / f"{name}.jsonl"
        write_jsonl(path, pairs_of([replace(each, prompt=prompt) for each in found], 1, 0))
        (row,) = read_preferences(str(path))
        assert (row.prompt, row.chosen, row.rejected, row.probability) == (prompt, "2\n#### 2", "3", 1.0)


def test_solutions_are_written_one_a_line_and_a_refusal_names_the_file(tmp_path):
    found = [solution("2", True, verifier_scores=(-1.5,)), solution("é", False)]
    write_jsonl(tmp_path / "solutions.jsonl", [asdict(each) for each in found])
    rows = [json.loads(line) for line in (tmp_path / "solutions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["response"], row["correct"], row["verifier_scores"]) for row in rows] == [
        ("2", True, [-1.5]), ("é", False, []),
    ]  # fmt: skip
    with pytest.raises(RunError, match=r"solutions\.jsonl/x"):
        write_jsonl(tmp_path / "solutions.jsonl" / "x", [])


def test_without_a_threshold_every_higher_score_is_paired_with_every_lower_one():
    found = [solution(text, None, score=score) for text, score in (("a", -3.0), ("b", -1.0), ("c", -3.0))]
    assert [(row["chosen"], row["rejected"]) for row in pairs_of(found, 10, 0)] == [("b", "a"), ("b", "c")]


def test_a_result_replaces_nothing_that_is_read_and_no_other_result(tmp_path):
    read = tmp_path / "rows.jsonl"
    read.touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "link").symlink_to(read)
    given = [str(read), str(tmp_path / "model"), None]
    for name, why in (
        ("rows.jsonl", "the command reads it"),
        ("link", "the command reads it"),
        ("model/config.json", "the command reads it"),
        ("model", "it is no regular file"),
        ("rows.jsonl/x", "is not a writable directory"),
    ):
        with pytest.raises(UsageError, match=rf"--pairs .*{name} cannot be written: .*{why}; give another path"):
            require_targets({"--pairs": tmp_path / name}, given)
    with pytest.raises(UsageError, match="--output writes it too"):
        require_targets({"--output": tmp_path / "x", "--pairs": tmp_path / "x"}, given)
    require_targets({"--output": tmp_path / "new" / "x", "--pairs": tmp_path / "model" / "new", "--o": None}, given)
