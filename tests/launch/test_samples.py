"""`offbeat samples`: what it prints of a run's files."""

import json

from launch.cli import main


def write(run, steps):
    answer = {"text": "Two\nlines", "score": 0.5, "version": 1, "finished": True}
    rows = [
        {"step": step, "prompt_id": f"p:{step}", "prompt": "Why?", "best": answer, "worst": answer | {"score": 0.25}}
        for step in steps
    ]
    (run / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run / "evaluation").mkdir()
    before = {"prompt_id": "e:1", "prompt": "How?", "start": answer | {"finished": False}, "final": answer}
    (run / "evaluation" / "answers.jsonl").write_text(json.dumps(before) + "\n")


def test_the_last_samples_and_answers_before_and_after_are_shown_with_their_scores(tmp_path, capsys):
    write(tmp_path, [1, 20, 40])
    assert main(["samples", str(tmp_path), "--last", "2"]) == 0
    out = capsys.readouterr().out
    assert "update 1," not in out
    assert "update 20, p:20: Why?\n  best, score 0.5:\n    Two\n    lines\n  worst, score 0.25:" in out
    assert "evaluation, e:1: How?\n  before training, score 0.5, without an end:\n    Two" in out


def test_as_json_it_is_one_object(tmp_path, capsys):
    write(tmp_path, [1, 20])
    assert main(["samples", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [sample["step"] for sample in found["samples"]] == [1, 20]
    assert found["answers"][0]["final"]["text"] == "Two\nlines"


def test_control_characters_of_an_answer_do_not_reach_the_terminal(tmp_path, capsys):
    write(tmp_path, [1])
    text = (tmp_path / "samples.jsonl").read_text().replace("Two", "\\u001b[2JTwo")
    (tmp_path / "samples.jsonl").write_text(text)
    assert main(["samples", str(tmp_path)]) == 0
    assert "\x1b[2J" not in capsys.readouterr().out


def test_damaged_lines_are_counted_on_stderr(tmp_path, capsys):
    write(tmp_path, [1, 20])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{\n{"step": 3}\n')
    assert main(["samples", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["samples"]) == 2
    file = tmp_path / "samples.jsonl"
    assert said.err == f"offbeat: warning: {file} has 2 lines that cannot be read and are left out\n"


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["samples", str(tmp_path)]) == 2
    assert "is no directory of a run" in capsys.readouterr().err


def test_a_run_without_a_sample_yet_says_so(tmp_path, capsys):
    (tmp_path / "samples.jsonl").touch()
    assert main(["samples", str(tmp_path)]) == 0
    assert "has no sample yet" in capsys.readouterr().err
