"""`offbeat verify` on runs of every kind: one line for each part, exit code 1 if one is not as it was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launch.cli import main
from tests.fakes.learner import FakeRanks
from tests.launch.output.test_journal import as_before_checksums, journal_in, write
from tests.launch.stages.test_driver import config_of, run


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A run with two checkpoints, a final and a starting model, and a journal."""
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]))
    journal = journal_in(tmp_path / "run" / "journal", journal={"updates_per_file": 2})
    write(journal, range(4))
    journal.flush()
    return tmp_path / "run"


def findings(directory: Path, capsys: pytest.CaptureFixture[str], code: int) -> dict[str, str]:
    """`name: path` of each line, and its level."""
    assert main(["verify", str(directory), "--json"]) == code
    told = json.loads(capsys.readouterr().out)["findings"]
    return {f"{each['name']} {each['text'].partition(': ')[0]}": each["level"] for each in told}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def test_every_part_of_a_whole_run_is_named_and_fine(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(stored, capsys, 0) == {
        f"checkpoint {stored}/checkpoints/update-0000005": "ok",
        f"checkpoint {stored}/checkpoints/update-0000010": "ok",
        f"directory {stored}/final": "ok",
        f"directory {stored}/start": "ok",
        f"journal {stored}/journal": "ok",
    }
    assert main(["verify", str(stored)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"{stored}/journal: updates 0 to 3" in out
    assert "all 5 checks passed" in out


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("checkpoints/update-0000005/hf/updates", "hf/updates has other content"),
        ("checkpoints/update-0000010/offbeat-manifest.json", "offbeat-manifest.json is not as it was written"),
        ("checkpoints/latest", "names"),
        ("final/updates", "updates has other content"),
        ("journal/groups-0000000-0000001.parquet", "groups-0000000-0000001.parquet has other content"),
        ("journal/checksums.jsonl", "line 1 of"),
    ],
)
def test_a_changed_file_of_any_part_is_named_and_the_code_is_1(
    stored: Path, capsys: pytest.CaptureFixture[str], file: str, named: str
) -> None:
    flip(stored / file)
    assert main(["verify", str(stored), "--json"]) == 1
    told = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["level"] == "error"]
    assert len(told) == 1
    assert named in told[0]["text"]
    assert told[0]["remedy"]


def test_a_missing_name_of_the_latest_checkpoint_is_a_warning(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resume takes the newest then, which a run that was rolled back must not."""
    (stored / "checkpoints" / "latest").unlink()
    assert main(["verify", str(stored), "--json"]) == 0
    told = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["level"] == "warning"]
    assert [each["text"] for each in told] == [
        f"{stored}/checkpoints/latest is missing, so --resume goes on from update-0000010, the newest one beside it"
    ]


def test_what_older_versions_wrote_is_a_warning(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_before_checksums(stored / "journal")
    (stored / "final" / "offbeat-manifest.json").unlink()
    (stored / "final" / "config.json").write_text("{}")
    old = stored / "checkpoints" / "update-0000005"
    (old / "offbeat-manifest.json").unlink()
    (old / "run_state.json").write_text("{}")
    assert sorted(findings(stored, capsys, 0).values()) == ["ok", "ok", "warning", "warning", "warning"]


def test_a_model_directory_and_a_directory_of_runs_can_be_given(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert findings(stored / "final", capsys, 0) == {f"directory {stored}/final": "ok"}
    shutil.copytree(stored, stored.parent / "runs" / "a")
    shutil.copytree(stored / "final", stored.parent / "runs" / "a" / "replay" / "final")
    assert len(findings(stored.parent / "runs", capsys, 0)) == 6


def test_a_directory_with_nothing_to_verify_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "nothing in it can be verified" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert "there is no directory" in capsys.readouterr().err


def test_verifying_changes_nothing(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in stored.rglob("*")}
    findings(stored, capsys, 0)
    assert {path: path.stat().st_mtime_ns for path in stored.rglob("*")} == before
