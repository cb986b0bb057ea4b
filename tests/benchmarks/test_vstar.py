"""The problems and figures of the V-STaR benchmark, worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.vstar import Task, carries, choices, figures, solution, write_problems


def test_a_solution_carries_and_a_forgetful_one_does_not() -> None:
    assert solution(57, 68, 2) == "7+8+0=15, 5+6+1=12 #### 125"
    assert solution(57, 68, 2, forgetful=True) == "7+8+0=15, 5+6+0=11 #### 115"
    assert solution(41, 38, 2) == solution(41, 38, 2, forgetful=True) == "1+8+0=9, 4+3+0=7 #### 79"


def test_a_carry_of_the_first_place_alone_cannot_be_forgotten() -> None:
    assert not carries(91, 20, 2)
    assert carries(19, 2, 2)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[dict[str, str]]]:
    write_problems(tmp_path, Task(digits=3, forgetful=0.6, rounds=1, epochs=1, seed=0))
    names = ("demonstrations", "train", "test")
    return {name: [json.loads(row) for row in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in names}


def test_a_share_of_the_demonstrations_is_wrong_and_every_other_answer_right(
    files: dict[str, list[dict[str, str]]],
) -> None:
    def right(row: dict[str, str]) -> bool:
        return int(row["answer"].split("#### ")[1]) == sum(map(int, row["question"].split("+")))

    wrong = sum(not right(row) for row in files["demonstrations"]) / len(files["demonstrations"])
    assert wrong == pytest.approx(0.6, abs=0.04)  # four standard deviations of a share of 3,000
    assert all(right(row) for name in ("train", "test") for row in files[name])


def test_test_problems_are_not_taught(files: dict[str, list[dict[str, str]]]) -> None:
    taught = {row["question"] for row in files["demonstrations"]}
    assert taught == {row["question"] for row in files["train"]}
    assert not taught & {row["question"] for row in files["test"]}


def test_a_verifier_s_reward_is_what_it_adds_to_the_first_solver_s_likelihood() -> None:
    assert choices([-3.0, -5.0, -4.0]) == [-3.0, 2.0, -4.0]
    assert choices([-3.0, -5.0]) == [-3.0, 2.0, -5.0]


def test_a_choice_is_compared_problem_by_problem() -> None:
    def row(problem: str, index: int, *, correct: bool, verifier: float, solver: float) -> dict[str, object]:
        response = f"... #### {'7' if correct else '8'}"
        scores = [verifier, solver]
        return {"prompt_id": problem, "response": response, "correct": correct, "verifier_scores": scores}

    rows = []
    for problem in ("a", "b"):
        for index in range(16):
            correct = index == 3
            best = correct or (problem == "b" and index == 0)
            verifier = (1.0 if index else 2.0) if best else -1.0
            rows.append(row(problem, index, correct=correct, verifier=verifier, solver=-float(index)))
    told = figures(rows)
    # The verifier finds the right answer of problem a alone; a vote and the solver find none.
    assert told["verifier_less"]["a vote"]["value"] == 0.5
    assert told["verifier_less"]["the solver's likelihood"]["value"] == 0.5
    assert told["verifier_less"]["one answer"]["value"] == 0.5 - 1 / 16
    assert told["majority"]["value"] == 0.0
