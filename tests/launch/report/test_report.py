"""The page as a whole, written through the command line."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launch.cli import main
from launch.report.sections import MOST_TEXT
from tests.launch.report.runs import summary_of, write_config, write_journal, write_lines, write_long_run, write_run

SECTIONS = [
    "Curves",
    "Staleness",
    "Who was busy when",
    "Time and ledger",
    "Samples before and after",
    "Configuration, environment, files",
]
"""Of every run; one with win rates and KL of several evaluations has one more, and one on a known game."""
RATED = [*SECTIONS[:-1], "Win rate and KL", SECTIONS[-1]]


class Page(HTMLParser):
    """What a browser sees: elements, attributes, texts by the element that they stand in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.texts.append((self.tags[-1] if self.tags else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for parent, text in self.texts if parent == tag]

    @property
    def text(self) -> str:
        return " ".join(text for parent, text in self.texts if parent not in ("style", "script"))


def report(*runs: Path, output: Path | None = None) -> Page:
    """Writes a report by the command line and reads it."""
    given = [] if output is None else ["--output", str(output)]
    assert main(["report", *map(str, runs), *given]) == 0
    return Page(output or runs[0] / "report.html")


def test_a_report_has_its_sections_in_order_after_the_verdict(tmp_path, capsys):
    page = report(write_run(tmp_path / "small"))
    assert page.of("h2") == RATED
    assert "Completions of the evaluations" not in page.text
    assert "beats the starting policy: win rate 0.700 [0.600, 0.800]" in page.text.partition("Curves")[0]
    assert str(tmp_path / "small" / "report.html") in capsys.readouterr().out


def test_a_report_loads_nothing_and_its_links_lead_into_the_run(tmp_path):
    run = write_run(tmp_path / "a run")
    page = report(run, output=tmp_path / "elsewhere" / "page.html")
    links = [value for name, value in page.attributes if name == "href"]
    assert "../a%20run/metrics.jsonl" in links
    assert all(link.startswith("../a%20run/") for link in links)
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "data", "xlink:href")]
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    policies = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert [policy.split(";")[0] for policy in policies] == ["default-src 'none'"]
    assert not re.search(r"url\(|@import", (tmp_path / "elsewhere" / "page.html").read_text())


def test_a_script_in_a_completion_is_text(tmp_path):
    attack = "</p><script>document.title='x'</script><img src=x onerror=alert(1)>\x1b[31m"
    run = write_run(tmp_path / "<b>run", said=attack, error=attack, status="failed")
    page = report(run)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.of("h1") == ["<b>run"]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>document.title='x'</script>" in page.text
    assert "\\x1b[31m" in page.text
    assert "\x1b" not in page.text


def test_a_long_completion_is_cut_and_the_rest_folded_away(tmp_path):
    said = "x" * MOST_TEXT + "y" * 5
    page = report(write_run(tmp_path / "small", said=said))
    assert "5 more characters" in page.of("summary")
    assert "x" * MOST_TEXT + "…" in page.of("p")
    assert "yyyyy" in page.of("p")


def test_a_run_that_has_just_begun_says_what_is_missing(tmp_path):
    write_config(tmp_path / "new")
    page = report(tmp_path / "new")
    assert page.of("h2") == SECTIONS
    assert "There is no metrics.jsonl, so there are no curves." in page.text
    assert "The run has recorded no times of its updates." in page.text
    assert "The run has not recorded how stale its groups were." in page.text
    assert "Neither time nor ledger is recorded" in page.text
    assert "no journal that was closed" in page.text
    assert "svg" not in page.tags


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", "summary.json", "journal"])
def test_half_of_a_run_s_files_give_a_report(tmp_path, missing):
    run = write_run(tmp_path / "small")
    path = run / missing
    for file in path.iterdir() if path.is_dir() else [path]:
        file.unlink()
    assert report(run).of("h2") == (RATED if missing in ("config.yaml", "journal") else SECTIONS)


@pytest.mark.parametrize(
    "summary",
    [
        {"status": "failed", "error": "killed"},
        {"ledger": {"offered": 1, "dropped": {"stale": "many"}}},
        {"staleness": None, "versions": 3, "updates": "none"},
        {"staleness": {"histogram": {"old": 1, "1": "x"}}, "time_budget": {"judge": 3}, "win_rate": [1]},
    ],
)
def test_a_summary_of_other_contents_gives_a_report(tmp_path, summary):
    """As a supervisor or another version writes it."""
    write_config(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert report(tmp_path).of("h2") == SECTIONS


def test_a_long_run_stays_below_three_megabytes(tmp_path):
    run = write_long_run(tmp_path / "long", updates=20_000)
    report(run)
    assert (run / "report.html").stat().st_size < 3e6


def test_what_is_no_run_ends_with_2_and_leaves_nothing(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "it has none of config.yaml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_not_replaced_and_an_earlier_report_is(tmp_path, capsys):
    run = write_run(tmp_path / "small")
    report(run)
    report(run)
    other = tmp_path / "notes.html"
    other.write_text("mine")
    assert main(["report", str(run), "--output", str(other)]) == 2
    assert "is no report; choose another file with --output FILE" in capsys.readouterr().err
    assert other.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_told_with_what_to_do(tmp_path, capsys):
    run = write_run(tmp_path / "small")
    (tmp_path / "file").write_text("")
    assert main(["report", str(run), "--output", str(tmp_path / "file" / "page.html")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_a_report_leaves_no_temporary_file(tmp_path):
    run = write_run(tmp_path / "small")
    before = {path.name for path in run.iterdir()}
    report(run)
    assert {path.name for path in run.iterdir()} - before == {"report.html"}


def test_a_stage_has_the_sections_of_what_it_does(tmp_path):
    told = {"status": "completed", "updates": 2, "total_updates": 2, "train_examples": 8, "loss": 0.1}
    (tmp_path / "summary.json").write_text(json.dumps(told))
    write_lines(tmp_path, [{"step": 1, "time": 5.0, "seconds": 1.0, "loss": 0.2}, {"step": 2, "held_out_loss": 0.3}])
    page = report(tmp_path)
    assert page.of("h2") == ["Curves", "Who was busy when", "Configuration, environment, files"]
    assert "it trained a model, 2 of 2 updates." in page.text
    assert "Held out loss" in page.of("b")


# ---------------------------------------------------------------- several runs


def test_runs_are_compared_with_what_separates_them_and_what_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    write_config(other, replay={"max_staleness": 3})
    assert main(["report", str(one), str(other)]) == 0
    page = Page(tmp_path / "report.html")
    assert page.of("h2") == ["Curves", "Win rate and KL", "Settings that differ", "Files"]
    assert "The win rate of other less that of one is 0 [-0.141, 0.141]: not separable from none." in page.text
    assert "replay.max_staleness" in page.of("td")
    assert "output" not in page.of("td")
    assert "not separable from none" in capsys.readouterr().out


def test_what_no_run_has_is_no_column_and_no_section(tmp_path):
    """A run judged by scores has no exploitability, and one evaluation draws no win rate against KL."""
    runs = [write_run(tmp_path / name) for name in ("one", "other")]
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        write_lines(run, [{name: value for name, value in line.items() if name != "win_rate"} for line in lines])
    page = report(*runs, output=tmp_path / "page.html")
    assert {"win rate", "KL"} <= set(page.of("th"))
    assert not {"rise of the reward", "exploitability"} & set(page.of("th"))
    assert "Win rate and KL" in page.of("h2"), "each run has one, so there are two to draw"
    assert report(runs[0]).of("h2") == SECTIONS


def test_the_game_is_a_section_of_runs_whose_game_is_known(tmp_path):
    page = report(write_long_run(tmp_path / "long"))
    assert "The game" in page.of("h2")
    assert "Win rate and KL" not in page.of("h2")


def test_curves_of_several_runs_are_over_each_other(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    report(one, other, output=tmp_path / "page.html")
    (loss,) = re.findall(r"<figure><figcaption><b>Loss</b>.*?</figure>", (tmp_path / "page.html").read_text())
    assert len(re.findall(r'class="s[01] line"', loss)) == 2
    assert re.findall(r'<li class="(s\d)"><i></i>(\w+)</li>', loss) == [("s0", "one"), ("s1", "other")]


def test_win_rates_by_other_judges_are_not_compared(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", judge="endpoint")
    page = report(one, other, output=tmp_path / "page.html")
    assert "The win rates of other and one are not compared: they differ in judge." in page.text


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    one, other = write_run(tmp_path / "a" / "seed-0"), write_run(tmp_path / "b" / "seed-0")
    page = report(one, other, output=tmp_path / "page.html")
    assert page.of("h3") == ["a/seed-0", "b/seed-0"]


def test_more_runs_than_a_page_holds_are_refused(tmp_path, capsys):
    run = str(write_run(tmp_path / "one"))
    assert main(["report", *[run] * 13]) == 2
    assert "13 runs were given, and a report compares at most 12" in capsys.readouterr().err


def test_one_run_given_twice_is_refused(tmp_path, capsys):
    run = write_run(tmp_path / "one")
    assert main(["report", str(run), f"{run}/"]) == 2
    assert "one run twice; leave one out" in capsys.readouterr().err


def test_one_run_beside_a_broken_one_is_compared(tmp_path):
    whole, empty = write_run(tmp_path / "whole"), tmp_path / "empty"
    write_config(empty)
    page = report(whole, empty, output=tmp_path / "page.html")
    assert "empty and whole have no figure in common that would compare them." in page.text
    assert "empty: There is no metrics.jsonl, so there are no curves." in page.text


def test_opponents_have_a_histogram_of_their_own(tmp_path):
    run = write_config(tmp_path, updates=4)
    write_lines(tmp_path, [{"step": 1, "loss": 1.0}])
    write_journal(tmp_path, run, [["one"]])
    told = summary_of(opponent_bound=1, opponent_staleness={"max": 1, "mean": 1.0, "histogram": {1: 8}})
    told.write(tmp_path / "summary.json")
    page = report(tmp_path)
    assert "8 groups at staleness 1, 100.0%" in page.of("title")
    assert "bound 1" in page.of("text")
