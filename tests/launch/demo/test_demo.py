"""The demo with a stand-in for training: two routes from one start, at equal KL, and what is left of them to read."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.errors import UsageError
from actors.world import World, corpus_outcome_probabilities
from launch.cli import main
from launch.demo import demo
from launch.output.summary import Staleness, Summary
from launch.run.world import mean_shares
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from learner.world import equilibria, exact
from learner.world.policy import TINY, train_sft

FIGURES = {
    "bradley-terry": {"exploitability": 0.3, "exploitability_tail": 0.25, "exact_kl": 1.5, "preference": 0.75},
    "nash-md": {"exploitability": 0.05, "exploitability_tail": None, "exact_kl": 1.25, "preference": 0.7},
}
FEW = ["updates=20", "world.sft_updates=1", "world.size=small"]


def _routes(*overrides: str) -> dict[str, RunConfig]:
    return {name: load_config(f"embedded-{name}", [*FEW, *overrides]) for name in FIGURES}


class Train:
    """Leaves what a run leaves; `code` is the first route's."""

    def __init__(self, code: int = 0) -> None:
        self.configs: list[RunConfig] = []
        self._code = code

    def __call__(self, config: RunConfig) -> int:
        self.configs.append(config)
        if self._code:
            return self._code
        directory = config.directory
        directory.mkdir(parents=True)
        if directory.name == "nash-md":
            train_sft(directory / "final", updates=1, seed=5, size=TINY)
        else:
            shutil.copytree(config.model.path, directory / "final")
        lines: list[dict[str, float]] = [{"step": step, "loss": 0.5} for step in range(1, 21)]
        for line, shares in ((lines[9], (0.2, 0.6, 0.1)), (lines[19], (0.3, 0.3, 0.3))):
            line |= {f"family_{number}": share for number, share in enumerate(shares)}
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        Summary(
            status="completed",
            name=directory.name,
            updates=20,
            max_staleness_bound=2,
            staleness=Staleness.of({0: 640}),
            groups_per_second=1.0,
            time_budget={},
            ledger={},
            **FIGURES[directory.name],
        ).write(directory / "summary.json")
        return 0


@dataclass(frozen=True)
class Shown:
    """One whole demo."""

    code: int
    directory: Path
    configs: dict[str, RunConfig]
    text: str
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    directory, train, out = tmp_path_factory.mktemp("demo") / "demo", Train(), io.StringIO()
    code = demo.Demo(_routes(), directory, train, Console(file=out, width=140, highlight=False)).run()
    summary = json.loads((directory / "summary.json").read_text())
    return Shown(code, directory, {config.directory.name: config for config in train.configs}, out.getvalue(), summary)


def test_both_routes_run_from_one_start_each_in_a_directory_of_its_own(shown: Shown) -> None:
    assert shown.code == 0
    assert list(shown.configs) == ["bradley-terry", "nash-md"]
    assert {config.model.path for config in shown.configs.values()} == {str(shown.directory / "start")}
    assert [config.directory for config in shown.configs.values()] == [shown.directory / name for name in FIGURES]
    assert (shown.directory / "start" / "model.safetensors").is_file()


def test_nothing_but_start_directory_and_the_rival_s_tau_is_changed(shown: Shown) -> None:
    for name, route in _routes().items():
        given, preset = shown.configs[name].model_dump(), route.model_dump()
        for tree in (given, preset):
            del tree["model"]["path"], tree["output"]
            if name == "bradley-terry":
                del tree["learner"]["loss"]["tau"]
        assert given == preset


def test_bradley_terry_is_given_the_tau_that_ends_as_far_from_the_start_as_nash_md(shown: Shown) -> None:
    mu = exact.load_policy(shown.directory / "start").probabilities
    game = World("intransitive")
    fixed_point = equilibria.nash_md_fixed_point(game, mu, 0.05, 0.125)
    tau = shown.configs["bradley-terry"].learner.loss.tau
    rival = equilibria.bradley_terry_optimum(game, mu, tau, corpus_outcome_probabilities())
    assert rival.kl == pytest.approx(fixed_point.kl, abs=1e-6)
    assert tau != 0.26
    routes = shown.summary["routes"]
    assert routes["nash-md"]["target_kl"] == pytest.approx(fixed_point.kl, abs=1e-6)
    assert routes["nash-md"]["target_exploitability"] == pytest.approx(fixed_point.exploitability, abs=1e-6)
    assert routes["bradley-terry"]["target_exploitability"] == pytest.approx(rival.exploitability, abs=1e-6)
    assert routes["bradley-terry"]["target_exploitability"] > routes["nash-md"]["target_exploitability"]


def test_the_summary_is_the_nash_route_s_with_both_side_by_side(shown: Shown) -> None:
    """The exploitability is the mean over the last tenth where there is one."""
    assert (shown.summary["status"], shown.summary["name"]) == ("completed", "demo")
    assert shown.summary["output"] == str(shown.directory)
    assert shown.summary["exact_kl"] == 1.25
    assert shown.summary["wall_seconds"] > shown.summary["sft_seconds"] > 0.0
    measured = {
        name: tuple(figures[key] for key in ("exploitability", "exact_kl", "preference"))
        for name, figures in shown.summary["routes"].items()
    }
    assert measured == {"bradley-terry": (0.25, 1.5, 0.75), "nash-md": (0.05, 1.25, 0.7)}
    Summary.model_validate(shown.summary)


def test_the_triangle_has_both_ways_the_start_and_where_nash_md_should_end(shown: Shown) -> None:
    labels = re.findall(r"^  (?:[a-d]\.\.[A-D]|[A-D]   )  (.*)$", shown.text, re.MULTILINE)
    assert labels == ["bradley-terry", "nash-md", "start", "Nash-MD, exact"]
    targets = demo.find_targets(_routes()["nash-md"], shown.directory / "start")
    rival, nash, start, limit = demo.family_curves(shown.directory, targets)
    assert [len(curve.points) for curve in (rival, nash)] == [3, 3], "the start and two evaluations"
    assert rival.points[0] == nash.points[0] == start.points[0], "one start"
    assert limit.points == [mean_shares(targets.exact["nash-md"])]


def test_the_end_shows_the_start_both_routes_their_targets_and_what_they_leave_to_exploit(shown: Shown) -> None:
    start, game = exact.load_policy(shown.directory / "start"), World("intransitive")
    lines = [line.split() for line in shown.text.splitlines()]
    rows = {words[0]: words[1:] for words in reversed(lines) if len(words) > 4}
    assert rows["start"] == ["(SFT)", f"{exact.exploitability(start, game):.3f}", "0.00", "0.500"]
    assert rows["bradley-terry"][:3] == ["0.250", "1.50", "0.750"]
    target = shown.summary["routes"]["nash-md"]
    shown_target = [f"{target['target_exploitability']:.3f}", "at", "KL", f"{target['target_kl']:.2f}"]
    assert rows["nash-md"][:7] == ["0.050", "1.25", "0.700", *shown_target]
    nash = exact.load_policy(shown.directory / "nash-md" / "final")
    duel = exact.expected_preference(nash, start, game)
    assert f"nash-md is preferred to bradley-terry with probability {duel:.3f}" in shown.text
    assert "the best answer to bradley-terry wins 75% of the time, the best answer to nash-md 55%" in shown.text
    routes = " ".join(str(shown.directory / name) for name in FIGURES)
    assert shown.text.endswith(f"in all. Compare them:\n    offbeat report {routes}\n")


def test_the_start_of_a_demo_can_be_verified(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    """`offbeat verify` warned of a model that the demo itself had written."""
    assert main(["verify", str(shown.directory / "start")]) == 0
    assert "the one check passed" in capsys.readouterr().out


def test_a_route_that_does_not_end_ends_the_demo_with_its_code(tmp_path: Path) -> None:
    train = Train(code=130)
    assert demo.Demo(_routes(), tmp_path / "demo", train, Console(file=io.StringIO())).run() == 130
    assert [config.directory.name for config in train.configs] == ["bradley-terry"]
    assert not (tmp_path / "demo" / "summary.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("world.task=transitive", r"world\.task is set to transitive, and the demo needs intransitive; leave it out"),
        ("model.path=other/model", r"model\.path is set to other/model"),
        ("model.reference=other/model", r"model\.reference is set to other/model"),
        ("prompts.source=p.jsonl", r"prompts\.source is set to p\.jsonl"),
        ("sampling.max_new_tokens=5", r"sampling\.max_new_tokens is set to 5"),
        (
            "learner.loss.kind=nash_pg",
            r"bradley-terry's learner\.loss\.kind is set to nash_pg, and the demo needs rloo; leave",
        ),
        (
            "learner.loss.kind=rloo",
            r"nash-md's learner\.loss\.kind is set to rloo, and the demo needs nash_pg",
        ),
        (
            "judging.judge.kind=gold",
            r"bradley-terry's judging\.judge\.kind is set to gold, and the demo needs bradley_terry",
        ),
        (
            "judging.judge.kind=bradley_terry",
            r"nash-md's judging\.judge\.kind is set to bradley_terry, and the demo needs gold",
        ),
        ("evaluation.exact_every_updates=0", r"evaluation\.exact_every_updates is set to 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(tmp_path: Path, override: str, message: str) -> None:
    train = Train()
    with pytest.raises(UsageError, match=message):
        demo.run_demo([override], tmp_path / "demo", train)
    assert train.configs == []
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("occupied", ["directory", "file"])
def test_an_output_that_holds_something_is_refused(tmp_path: Path, occupied: str) -> None:
    train, output = Train(), tmp_path / "demo"
    if occupied == "directory":
        output.mkdir()
        (output / "something").write_text("")
    else:
        output.write_text("")
    with pytest.raises(UsageError, match=r"demo is not empty; choose another with --output DIR"):
        demo.run_demo([], output, train)
    assert train.configs == []


@pytest.fixture
def demos() -> list[dict[str, RunConfig]]:
    """Routes of the demos that would have run."""
    return []


@pytest.fixture
def directories(monkeypatch: pytest.MonkeyPatch, demos: list[dict[str, RunConfig]]) -> list[Path]:
    """Where demos would have run."""
    chosen: list[Path] = []

    class Recorded:
        def __init__(self, routes: dict[str, RunConfig], directory: Path, train: Any) -> None:
            chosen.append(directory)
            demos.append(routes)

        def run(self) -> int:
            return 3

    monkeypatch.setattr(demo, "Demo", Recorded)
    return chosen


def test_a_demo_takes_the_next_free_directory_unless_it_is_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directories: list[Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.run_demo([], None, Train()) == 3
    Path("runs/demo").mkdir(parents=True)
    demo.run_demo([], None, Train())
    demo.run_demo([], Path("here"), Train())
    demo.run_demo(["output=there"], None, Train())
    Path("empty").mkdir()
    demo.run_demo([], Path("empty"), Train())
    assert list(map(str, directories)) == ["runs/demo", "runs/demo-2", "here", "there", "empty"]


@pytest.mark.usefixtures("directories")
def test_settings_of_opponents_are_given_to_the_route_that_has_them(
    tmp_path: Path, demos: list[dict[str, RunConfig]]
) -> None:
    overrides = [
        "learner.loss.opponent.kind=mixture",
        "learner.loss.correction.opponents=none",
        "learner.loss.correction.players=token",
    ]
    demo.run_demo([*overrides, "updates=20"], tmp_path / "demo", Train())
    rival, nash = demos[0]["bradley-terry"], demos[0]["nash-md"]
    assert (rival.updates, rival.opponent) == (20, None)
    assert (nash.updates, nash.opponent.kind, nash.learner.loss.correction.opponents) == (20, "mixture", "none")
    assert rival.learner.loss.correction.players == nash.learner.loss.correction.players == "token"


@pytest.mark.parametrize(
    ("overrides", "beta"),
    [
        (["learner.loss.opponent.beta=0.5"], 0.5),
        (
            [
                "learner.loss.opponent.kind=mixture",
                "learner.loss.opponent.beta=0.5",
                "learner.loss.correction.opponents=none",
            ],
            0.5,
        ),
        (["learner.loss.opponent.beta=0.5", "learner.loss.correction.opponents=none"], 0.0),
        (["learner.loss.opponent.kind=self"], 0.0),
        (["learner.loss.opponent.kind=ema"], 0.0),
        (["learner.loss.opponent.kind=reference"], 1.0),
    ],
)
def test_nash_md_s_exact_target_is_that_of_the_opponent_really_played(
    shown: Shown, tmp_path: Path, overrides: list[str], beta: float
) -> None:
    """An average of past policies ends as the policy; without importance weights, nothing is mixed in."""
    routes = {
        "bradley-terry": load_config("embedded-bradley-terry"),
        "nash-md": load_config("embedded-nash-md", overrides),
    }
    start = shown.directory / "start"
    demo.Demo(routes, tmp_path, Train(), Console(file=io.StringIO()))
    targets = demo.find_targets(routes["nash-md"], start)
    mu = exact.load_policy(start).probabilities
    fixed_point = equilibria.nash_md_fixed_point(World("intransitive"), mu, 0.05, beta)
    assert targets.exact["nash-md"].kl == pytest.approx(fixed_point.kl, abs=1e-9)
