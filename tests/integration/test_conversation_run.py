"""A whole run on conversations: bounded, counted, judged by the last message, and replayed to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.output.journal_reader import JournalReader
from tests.integration.runs import finish, small_run, start, summary_of
from tests.integration.test_repeatable_run import replayed
from tests.processes import Marked

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]

UPDATES = 4


def test_a_run_on_conversations_keeps_its_bound_and_ledger_and_is_replayed_to_the_bit(
    own: Marked, model_dir: Path, tmp_path: Path
) -> None:
    words = [f"{colour} {way}" for colour in ("red", "green") for way in ("north", "south", "east", "west")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in words))
    config = small_run(
        tmp_path,
        model_dir,
        updates=UPDATES,
        prompts={"source": str(tmp_path / "prompts.jsonl"), "prompt_field": "prompt"},
        sampling={
            "max_new_tokens": 24,
            "environment": {
                "path": "tests.integration.conversations:Echo",
                "arguments": {"replies": 2},
                "timeout_seconds": 20.0,
            },
        },
        judging={"judge": {"kind": "function", "path": "tests.integration.conversations:longest"}},
        checkpoints={"every_updates": 0},
    )
    finish(start("train", str(config)))
    run = tmp_path / "run"
    summary = summary_of(run)
    ((reason, times),) = summary["ledger"]["returned"].items()
    assert reason.startswith("environment # raised ConnectionError: the tool is away (tests/"), "counted by kind"
    assert times == 1
    assert summary["ledger"]["trained"] == 8 * UPDATES
    assert summary["staleness"]["max"] <= 1
    completions = [
        c for batch in JournalReader(run / "journal").batches(0) for g in batch.groups for c in g.completions
    ]
    assert sum(len(completion.given) for completion in completions) > len(completions) / 2
    assert all(len(completion.token_ids) <= 24 for completion in completions)
    assert all(list(completion.versions) == sorted(completion.versions) for completion in completions)
    assert summary["log_ratio_max"] is None or summary["log_ratio_max"] < 2e-4
    report = replayed(run, into="again")
    assert (report["trained"], report["groups"], report["left_out"]) == (UPDATES, 8 * UPDATES, 0)
    assert (report["weights"]["different"], report["first_difference"]) == (0, None)
