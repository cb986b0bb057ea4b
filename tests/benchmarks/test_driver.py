"""The driver's benchmark: a small trial trains what it offers, within its own ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.driver import Size, Trial, checkpoint


@pytest.mark.parametrize("rate", [None, 2000.0])
def test_a_trial_counts_the_groups_that_were_trained_and_keeps_them_in_a_journal(
    tmp_path: Path, rate: float | None
) -> None:
    trial = Trial(tmp_path, 3, Size(2, 4), rate)
    measured = trial.run(1.0)
    assert rate is None or measured["groups_per_second"] < 2 * rate
    assert trial.buffer.ledger()["trained"] > 0
    assert list((tmp_path / "journal").glob("updates-*.parquet"))


def test_a_checkpoint_is_of_a_full_buffer(tmp_path: Path) -> None:
    saved = checkpoint(tmp_path, Size(2, 4), 12)
    assert saved["groups"] == 12.0
    assert 0.0 < saved["stopped_seconds"] <= saved["seconds"]
    assert saved["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file())
