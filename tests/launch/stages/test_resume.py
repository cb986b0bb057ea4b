"""What a stage resumes from is what was written; its ranks are fakes, its checkpoints are files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.errors import UsageError
from launch.output.session import Session
from launch.settings.loading import RECORDED
from launch.settings.yaml_text import parse_yaml
from launch.stages.driver import StageRun
from launch.stages.prepared import Prepared
from learner.backend import checkpoints, manifest
from tests.fakes.learner import FakeRanks
from tests.launch.stages.test_driver import config_of, final_of, prepare, run


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def checkpoint(directory: Path, update: int) -> Path:
    return directory / "run" / "checkpoints" / f"update-{update:07d}"


def cut_run(directory: Path) -> None:
    """Leave checkpoints after updates 5 and 10, the newer one with a damaged file."""
    run(config_of(directory, checkpoint_every=5), FakeRanks([1.0]))
    damage(next(path for path in (checkpoint(directory, 10) / "deepspeed").rglob("*") if path.is_file()))


def test_a_damaged_checkpoint_is_refused_before_a_rank_starts_and_the_one_before_it_offered(tmp_path: Path) -> None:
    cut_run(tmp_path)
    ranks = FakeRanks([1.0])
    with pytest.raises(UsageError, match=rf"deepspeed/.* has other content.*--resume {checkpoint(tmp_path, 5)},"):
        run(config_of(tmp_path, checkpoint_every=5), ranks, resume=True)
    assert ranks.calls == []


@pytest.mark.parametrize("how", ["last-good", "path"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_when_asked(tmp_path: Path, how: str) -> None:
    cut_run(tmp_path)
    before, ranks = checkpoint(tmp_path, 5), FakeRanks([1.0])
    wanted = "last-good" if how == "last-good" else str(before)
    assert run(config_of(tmp_path, checkpoint_every=5), ranks, resume=wanted) == 0
    assert [call for call in ranks.calls if call[0] == "advance"] == [("advance", 3), ("advance", 2)]
    assert checkpoints.verify(checkpoint(tmp_path, 10)) == []


def test_a_setting_that_changed_since_the_last_start_is_told_once(tmp_path: Path, capsys: Any) -> None:
    """A run went on with another judge, dtype or learning rate without a word."""
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]))
    capsys.readouterr()
    other = config_of(tmp_path, checkpoint_every=5)
    other = other.model_copy(update={"learner": other.learner.model_copy(update={"reduce_dtype": "bfloat16"})})
    run(other, FakeRanks([1.0]), resume=True)
    said = " ".join(capsys.readouterr().err.split())
    told = "changed since the run was last started: learner.reduce_dtype (was float32, is bfloat16)"
    assert said.count("changed since") == said.count(told) == 1
    run(other, FakeRanks([1.0]), resume=True)
    assert "changed since" not in capsys.readouterr().err


def test_settings_that_no_rank_could_read_the_checkpoint_with_are_refused_before_one_starts(tmp_path: Path) -> None:
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]))
    newest = checkpoint(tmp_path, 10)
    (newest / "deepspeed" / "layout.json").write_text('{"ranks": 1, "zero_stage": 3, "dtype": "float32"}')
    manifest.seal(newest, run=manifest.read(newest).run, update=10)
    ranks = FakeRanks([1.0])
    with pytest.raises(UsageError, match=r"changed since .*learner\.zero_stage \(was 3, is \d\).*; resume with"):
        run(config_of(tmp_path, checkpoint_every=5), ranks, resume=True)
    assert ranks.calls == []


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("deepspeed/layout.json", "{", r"deepspeed/layout\.json: Expecting property name"),
        ("run_state.json", '{"state": {}}', r"run_state\.json names no settings of its run"),
    ],
)
def test_a_damaged_checkpoint_of_before_manifests_is_refused_with_the_one_before_it(
    tmp_path: Path, file: str, text: str, told: str
) -> None:
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]))
    newest = checkpoint(tmp_path, 10)
    (newest / "offbeat-manifest.json").unlink()
    (newest / "run_state.json").write_text('{"fixed": {}, "state": {}}')
    (newest / file).write_text(text)
    with pytest.raises(UsageError, match=rf"cannot be used: {told}.*; go on from the one before it"):
        run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]), resume=True)


def test_a_run_that_was_rolled_back_and_died_goes_on_from_where_it_was_rolled_back_to(tmp_path: Path) -> None:
    """Its metrics and journal have no updates after that."""
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]))
    session = Session(config_of(tmp_path), resume=str(checkpoint(tmp_path, 5)))
    with session.running():
        pass
    assert Session(config_of(tmp_path), resume=True).checkpoint == checkpoint(tmp_path, 5)


def test_the_checkpoints_of_a_run_and_its_model_name_it(tmp_path: Path) -> None:
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]))
    own = (tmp_path / "run" / "run_id").read_text().strip()
    found = [manifest.read(path) for path in (*map(checkpoint, [tmp_path] * 2, (5, 10)), tmp_path / "run" / "final")]
    assert [(each.run, each.update) for each in found] == [(own, 5), (own, 10), (own, 10)]
    # Lost, it is taken from the checkpoint: the older ones stay this run's.
    (tmp_path / "run" / "run_id").unlink()
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]), resume=True)
    assert (tmp_path / "run" / "run_id").read_text().strip() == own


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        run(config_of(tmp_path / name), FakeRanks([1.0]))
    shutil.rmtree(checkpoint(tmp_path / "one", 10))
    shutil.copytree(checkpoint(tmp_path / "other", 10), checkpoint(tmp_path / "one", 10))
    with pytest.raises(UsageError, match=r"run \w{32} wrote it, and this directory is of run \w{32}"):
        run(config_of(tmp_path / "one"), FakeRanks([1.0]), resume=True)


def test_a_starting_model_that_changed_since_the_start_is_refused(tmp_path: Path) -> None:
    run(config_of(tmp_path), FakeRanks([1.0]))
    (tmp_path / "run" / "start" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="the model"):
        run(config_of(tmp_path), FakeRanks([1.0]), resume=True)


def test_the_best_model_is_verified_before_the_last_files_are_added_to_it(tmp_path: Path) -> None:
    """With patience it is of an earlier evaluation, perhaps of an earlier process."""

    class Damaging(FakeRanks):
        async def evaluate(self) -> dict[str, float]:
            if self.updates == 10:
                damage(tmp_path / "run" / "final" / "updates")
            return await super().evaluate()

    with pytest.raises(UsageError, match="updates has other content"):
        run(config_of(tmp_path, patience=2), Damaging([9.0, 3.0, 4.0, 5.0]))


def test_a_finished_model_s_manifest_covers_what_was_added_at_the_end(tmp_path: Path) -> None:
    class Finishing(FakeRanks):
        async def finish(self, directory: Path) -> dict[str, object]:
            (directory / "preference.json").write_text("{}")
            return {}

    def prepared(*given: Any) -> Prepared:
        return replace(prepare(*given), beside={"dpo.json": '{"beta": 1}'})

    run(config_of(tmp_path), Finishing([1.0]), prepared=prepared)
    assert (tmp_path / "run" / "final" / "dpo.json").read_text() == '{"beta": 1}'
    found = manifest.read(tmp_path / "run" / "final")
    assert sorted(found.files) == ["dpo.json", "preference.json", "updates"]
    assert found.problems(tmp_path / "run" / "final", closed=True) == []
    assert final_of(tmp_path) == found.update == 10


@pytest.mark.parametrize("recorded", [False, True])
def test_a_run_that_began_before_rows_had_no_padding_goes_on_with_its_packing(tmp_path: Path, recorded: bool) -> None:
    """One row without padding changes rounding, and a resumed run is the same to the bit."""
    run(config_of(tmp_path, checkpoint_every=5), FakeRanks([1.0]))
    file = tmp_path / "run" / RECORDED
    tree = parse_yaml(file.read_text())
    if not recorded:
        del tree["learner"]["share_prompts"]
    file.write_text(yaml.safe_dump(tree))
    resumed = StageRun(config_of(tmp_path, checkpoint_every=5), prepare, resume=True)
    assert resumed.config.learner.packing
    assert resumed.config.learner.share_prompts == recorded
