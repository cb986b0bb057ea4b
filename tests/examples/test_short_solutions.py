"""The example of short solutions: what its judge gives, and files that load."""

from pathlib import Path

import pytest

from actors.records import Completion, Prompt
from examples.short_solutions.judge import short_in_form
from launch.cli import main
from launch.settings import verbs
from launch.settings.loading import load_config
from tests.house import ROOT

SOURCE = "prompts.source=data/problems.jsonl"
SIXTY = "word " * 56


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("She has 2 + 3 = 5. The answer is 5.", 1.0),
        ("The answer is $1,250.50.\n", 1.0),
        ("The answer is -3.", 1.0),
        ("The answer is 5. I hope this helps!", 0.75),
        ("The answer is: 5", 0.75),
        ("She has 5.", 0.5),
        (SIXTY + "The answer is 5.", 0.75),
        (SIXTY + "and that is it.", 0.25),
        ("", 0.0),
    ],
)
def test_form_and_brevity_count_half_each(text: str, score: float) -> None:
    """Sixty words are twice what costs nothing."""
    completion = Completion((5, 2), (-0.1, -0.2), (0, 0), text, finished=True)
    assert short_in_form(Prompt("p:0", (1,), "How many?"), [completion]) == [score]


def test_its_runs_and_its_sweep_are_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    load_config("examples/short_solutions/train.yaml", [SOURCE], verbs.TRAIN)
    sweep = ["sweep", "examples/short_solutions/sweep.yaml", SOURCE, "--output", str(tmp_path / "out")]
    assert main([*sweep, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "8 runs" in printed
    assert "loss=dpo-anchor,staleness=16: learner.anchor.weight=0.8" in printed
