"""A stored directory is what was written, or is refused by the name of the file that is not."""

import json
import random
import shutil
import subprocess
import sys

import pytest
import xxhash

from actors.errors import UsageError
from learner.backend import checkpoints, manifest
from learner.backend.manifest import DamagedError, FileSum


def save(root, update, content="", **identity):
    """Make a checkpoint of a few kilobytes."""
    path = checkpoints.begin(root, f"update-{update}")
    for part in ("deepspeed", "hf"):
        (path / part).mkdir()
        (path / part / "weights").write_bytes(random.Random(f"{part}{update}{content}").randbytes(3000))
    (path / "deepspeed" / "layout.json").write_text('{"ranks": 2}')
    checkpoints.write_state(path, {"updates": update})
    return checkpoints.commit(root, path.name.removeprefix(".tmp-"), keep=9, **identity)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_manifest_holds_the_checksums_that_xxhsum_prints(tmp_path):
    """XXH3 of 128 bits of the empty input and of `abc`, from xxHash's own tool."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "sub" / "abc").write_text("abc")
    manifest.seal(tmp_path, run="r", update=3, layout={"ranks": 1})
    assert json.loads((tmp_path / "offbeat-manifest.json").read_text())["files"] == {
        "empty": {"bytes": 0, "xxh3_128": "99aa06d3014798d86001c324468d497f"},
        "sub/abc": {"bytes": 3, "xxh3_128": "06b05ab6733a618578af5f94892f3950"},
    }
    found = manifest.read(tmp_path)
    assert (found.run, found.update, found.layout, found.nbytes) == ("r", 3, {"ranks": 1}, 3)
    assert found.problems(tmp_path, closed=True) == []


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 30, 31])
def test_a_large_file_s_checksum_is_that_of_its_pieces_checksums(tmp_path, monkeypatch, size):
    monkeypatch.setattr(manifest, "_PIECE", 10)
    monkeypatch.setattr(manifest, "_BLOCK", 4)  # so that threads are used, and a piece is no whole number of blocks
    content = random.Random(size).randbytes(size)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(content)
    pieces = [content[start : start + 10] for start in range(0, size, 10)]
    joined = b"".join(map(xxhash.xxh3_128_digest, pieces)) if len(pieces) > 1 else content
    assert manifest.sums([tmp_path / "a", tmp_path / "b"]) == [FileSum(size, xxhash.xxh3_128_hexdigest(joined))] * 2


@pytest.mark.parametrize("advice", [manifest._POPULATE_READ, -1])
def test_a_file_that_cannot_be_mapped_whole_is_read(tmp_path, monkeypatch, advice):
    """On older kernels, and where a sector is bad: then reading it is the error, not a signal."""
    monkeypatch.setattr(manifest, "_POPULATE_READ", advice)
    content = random.Random(0).randbytes(3 * 2**20 + 5)
    (tmp_path / "a").write_bytes(content)
    assert manifest.sums([tmp_path / "a"]) == [FileSum(len(content), xxhash.xxh3_128_hexdigest(content))]


def test_a_thousand_flipped_bits_of_a_checkpoint_are_all_refused(tmp_path):
    """991 of 1,000 were loaded with other values; a bit of the manifest itself is one too."""
    path = save(tmp_path, 1, run="r")
    before = save(tmp_path, 0, run="r")
    assert checkpoints.verify(path, "r") == []
    files = [each for each in path.rglob("*") if each.is_file()]
    whole = {each: each.read_bytes() for each in files}
    draw = random.Random(0)
    for _ in range(1000):
        file = draw.choice(files)
        flip(file, draw.randrange(8 * len(whole[file])))
        with pytest.raises(UsageError, match=rf"{file.name}.*--resume {before}"):
            checkpoints.verify(path, "r")
        file.write_bytes(whole[file])
    assert checkpoints.verify(path, "r") == []


@pytest.mark.parametrize("change", ["cut", "grown", "gone", "added", "no manifest"])
def test_a_file_that_was_cut_is_missing_or_was_added_is_named(tmp_path, change):
    path = save(tmp_path, 4)
    file = path / "hf" / "weights"
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif change == "grown":
        file.write_bytes(file.read_bytes() + b"\0")
    elif change == "gone":
        file.rename(path / "hf" / ".weights")
    elif change == "added":
        (path / "deepspeed" / "zero_pp_rank_2").touch()
    else:
        (path / "offbeat-manifest.json").unlink()
    told = {
        "cut": "hf/weights has 2,999 bytes, expected 3,000",
        "grown": "hf/weights has 3,001 bytes, expected 3,000",
        "gone": "hf/weights is missing",
        "added": "deepspeed/zero_pp_rank_2 is not part of it",
        "no manifest": "offbeat-manifest.json missing",
    }[change]
    with pytest.raises(UsageError, match=told):
        checkpoints.verify(path)


@pytest.mark.parametrize("part", ["deepspeed", "hf", "run_state.json"])
def test_a_part_of_another_checkpoint_of_the_same_layout_is_refused(tmp_path, part):
    """It was read: the parts did not know whose they are."""
    path, other = save(tmp_path, 2), save(tmp_path, 1)
    if part == "run_state.json":
        shutil.copy(other / part, path / part)
    else:
        shutil.rmtree(path / part)
        shutil.copytree(other / part, path / part)
    with pytest.raises(UsageError, match=rf"{part}\S* has other content"):
        checkpoints.verify(path)


def test_a_whole_checkpoint_of_another_update_or_another_run_is_refused(tmp_path):
    save(tmp_path / "a", 3, run="a")
    shutil.copytree(tmp_path / "a" / "update-3", tmp_path / "a" / "update-5")
    with pytest.raises(UsageError, match="written after update 3"):
        checkpoints.verify(tmp_path / "a" / "update-5", "a")
    with pytest.raises(UsageError, match="run a wrote it, and this directory is of run b"):
        checkpoints.verify(tmp_path / "a" / "update-3", "b")


def test_a_checkpoint_of_an_older_version_is_read_with_a_note(tmp_path):
    path = save(tmp_path, 1)
    (path / "offbeat-manifest.json").unlink()
    (path / "run_state.json").write_text('{"updates": 1}')
    assert checkpoints.to_resume(tmp_path, None, "r") == (
        path,
        [f"checkpoint {path} was written without offbeat-manifest.json: it cannot be verified"],
    )
    assert checkpoints.read_state(path) == {"updates": 1}


def test_the_last_good_checkpoint_is_the_newest_that_verifies(tmp_path):
    paths = [save(tmp_path, update, run="r") for update in (1, 2, 3)]
    assert checkpoints.to_resume(tmp_path, checkpoints.LAST_GOOD, "r") == (paths[2], [])
    flip(paths[2] / "hf" / "weights", 7)
    (paths[1] / "deepspeed" / "weights").unlink()
    with pytest.raises(UsageError, match=rf"update-3.*hf/weights.*--resume {paths[1]}.*--resume=last-good"):
        checkpoints.to_resume(tmp_path, None, "r")
    found, notes = checkpoints.to_resume(tmp_path, checkpoints.LAST_GOOD, "r")
    assert found == paths[0]
    assert [("update-3" in note, "update-2" in note) for note in notes] == [(True, False), (False, True)]
    flip(paths[0] / "run_state.json", 9)
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be used: .*update-1"):
        checkpoints.to_resume(tmp_path, checkpoints.LAST_GOOD, "r")
    assert checkpoints.to_resume(tmp_path / "none", checkpoints.LAST_GOOD) == (None, [])


def test_the_last_good_checkpoint_is_none_that_the_run_was_rolled_back_from(tmp_path):
    """Its journal and metrics end where it was rolled back to."""
    paths = [save(tmp_path, update, run="r") for update in (1, 2, 3)]
    checkpoints.point_to(tmp_path, paths[1])
    assert checkpoints.to_resume(tmp_path, checkpoints.LAST_GOOD, "r") == (paths[1], [])
    flip(paths[1] / "hf" / "weights", 7)
    assert checkpoints.to_resume(tmp_path, checkpoints.LAST_GOOD, "r")[0] == paths[0]
    (tmp_path / "latest").write_bytes(b"\xff")
    assert checkpoints.to_resume(tmp_path, checkpoints.LAST_GOOD, "r") == (paths[2], [])


def test_a_checkpoint_is_chosen_by_path_or_name_within_the_run(tmp_path):
    paths = [save(tmp_path / "a", update) for update in (1, 2)]
    assert checkpoints.to_resume(tmp_path / "a", str(paths[0])) == (paths[0], [])
    assert checkpoints.to_resume(tmp_path / "a", "update-1") == (paths[0], [])
    with pytest.raises(UsageError, match="not one of this run's"):
        checkpoints.to_resume(tmp_path / "b", str(paths[0]))
    checkpoints.point_to(tmp_path / "a", paths[0])
    assert checkpoints.latest(tmp_path / "a") == paths[0]


def test_a_model_directory_is_verified_by_its_own_manifest_or_that_of_its_checkpoint(tmp_path):
    path = save(tmp_path, 1)
    assert manifest.check(path / "hf").update == 1
    flip(path / "deepspeed" / "weights", 0)
    (path / "hf" / "README.md").touch()
    assert list(manifest.check(path / "hf").files) == ["weights"]
    flip(path / "hf" / "weights", 0)
    with pytest.raises(DamagedError, match=r"hf is not as it was written: weights has other content.*remove"):
        manifest.check(path / "hf")
    (tmp_path / "model").mkdir()
    assert manifest.check(tmp_path / "model") is None


@pytest.mark.parametrize("text", [b"", b"[1]", b"null", b'{"files": {}}', b'{"files": [1]}', b"[" * 100_000, b"\xff"])
def test_a_manifest_that_is_none_is_refused_by_name(tmp_path, text):
    (tmp_path / "offbeat-manifest.json").write_bytes(text)
    with pytest.raises(DamagedError, match=r"offbeat-manifest\.json is not as it was written"):
        manifest.read(tmp_path)


def test_the_manifest_needs_no_torch():
    script = "import sys, learner.backend.checkpoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
