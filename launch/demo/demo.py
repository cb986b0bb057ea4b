"""The demo: one small world, two routes from the same start, and what each of them leaves open to exploit.

In the embedded world's intransitive task every family of answers is beaten by another. A Bradley-Terry reward has to
rank them all the same, and its optimum gives itself away; Nash-MD spreads out. Both routes are ordinary runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.errors import UsageError
from actors.settings import WORLD
from actors.world import MAX_NEW_TOKENS, World, corpus_outcome_probabilities
from launch.demo.triangle import Curve, triangle_svg, triangle_text
from launch.output.board import clock
from launch.output.run_directory import next_free
from launch.output.summary import Summary
from launch.run.staleness_limit import beta_of
from launch.run.world import mean_shares
from launch.settings.run import RunConfig
from learner.config import GameLossConfig

if TYPE_CHECKING:
    from learner.world.equilibria import Equilibrium
    from learner.world.exact import ExactPolicy

BRADLEY_TERRY, NASH_MD = "bradley-terry", "nash-md"
DIRECTORY = Path("runs/demo")
OF_OPPONENTS = ("learner.loss.opponent", "learner.loss.correction.opponent")
"""How settings begin that only a loss with an opponent reads."""
ROUTES = {BRADLEY_TERRY: ("reward_pg", "bradley_terry"), NASH_MD: ("nash_pg", "gold")}
"""Kinds of loss and judge that make each route what it is called."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the routes should end, by enumeration."""

    world: World
    reference: ExactPolicy
    """The trained start."""
    bradley_terry_tau: float
    """The tau with which the Bradley-Terry route ends as far from the reference as Nash-MD."""
    exact: dict[str, Equilibrium]
    """By route."""


class Demo:
    """Both routes below one directory.

    Args:
        routes: the runs' configurations, `bradley-terry` first; they must share world and model.
        directory: of the demo; must not exist.
        train: runs one configuration and returns its exit code.
        console: where it prints.

    Raises UsageError for routes that cannot be compared by enumeration on the intransitive task.
    """

    def __init__(
        self,
        routes: dict[str, RunConfig],
        directory: Path,
        train: Callable[[RunConfig], int],
        console: Console | None = None,
    ) -> None:
        for name, route in routes.items():
            _check(name, route)
        self._routes = routes
        self._directory = directory
        self._train = train
        self._console = console or Console(highlight=False)
        self._started = time.monotonic()
        self._sft_seconds = 0.0

    def run(self) -> int:
        """Trains, compares, writes `summary.json` and `triangle.svg`; returns the exit code of a route that did not
        end with all its updates done, else 0."""
        start = self._start()
        targets = self._targets(start)
        for name, route in self._routes.items():
            self._say(f"\n{name}: {route.updates} updates")
            model = route.model.model_copy(update={"path": str(start)})
            if name == BRADLEY_TERRY:
                route = _with_tau(route, targets.bradley_terry_tau)
            code = self._train(route.model_copy(update={"output": str(self._directory / name), "model": model}))
            if code:
                return code
        self._compare(targets)
        return 0

    def _start(self) -> Path:
        """The supervised policy that both routes start from."""
        import os

        from learner.world.policy import train_sft

        world = next(iter(self._routes.values())).world
        path = self._directory / "start"
        self._say(f"supervised training of the world's policy: {world.sft_updates} updates")
        report = train_sft(path, updates=world.sft_updates, seed=world.seed, threads=os.cpu_count() or 1)
        self._sft_seconds = report.seconds
        self._say(f"{report.parameters:,} parameters, {report.loss:.2f} nats per answer, in {clock(report.seconds)}")
        return path

    def _targets(self, start: Path) -> Targets:
        """Where both routes should end, by enumeration, with the trained start as reference."""
        from learner.world import equilibria, exact

        route = self._routes[NASH_MD]
        world = World("intransitive", route.world.seed)
        reference = exact.load_policy(start, route.sampling.temperature)
        loss = route.learner.loss
        assert isinstance(loss, GameLossConfig)
        mu, tau, beta = reference.probabilities, loss.tau, _beta_at_the_end(loss)
        fixed_point = equilibria.nash_md_fixed_point(world, mu, tau, beta)
        pairs = corpus_outcome_probabilities()  # those that the judge's reward is fitted on
        rival_tau = equilibria.bradley_terry_tau_at_kl(world, mu, fixed_point.kl, pairs)
        rival = equilibria.bradley_terry_optimum(world, mu, rival_tau, pairs)
        self._say(
            f"exact targets: Nash-MD exploitability {fixed_point.exploitability:.3f} at KL {fixed_point.kl:.2f}; "
            f"Bradley-Terry {rival.exploitability:.3f} at the same KL, with tau {rival_tau:.3f}"
        )
        return Targets(world, reference, rival_tau, {BRADLEY_TERRY: rival, NASH_MD: fixed_point})

    def _compare(self, targets: Targets) -> None:
        from learner.world import exact

        world, reference = targets.world, targets.reference
        summaries = {name: _summary(self._directory / name) for name in self._routes}
        finals = {
            name: exact.load_policy(self._directory / name / "final", route.sampling.temperature)
            for name, route in self._routes.items()
        }
        duel = exact.expected_preference(finals[NASH_MD], finals[BRADLEY_TERRY], world)

        table = Table(box=None, padding=(0, 2, 0, 0))
        columns = ("", "exploitability", "KL", "beats the start", "exact target")
        for column in columns:
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        table.add_row("start (SFT)", f"{exact.exploitability(reference, world):.3f}", "0.00", "0.500", "")
        for name, summary in summaries.items():
            target = targets.exact[name]
            table.add_row(
                name,
                f"{_tail(summary):.3f}",
                f"{summary.exact_kl:.2f}",
                f"{summary.preference:.3f}",
                f"{target.exploitability:.3f} at KL {target.kl:.2f}",
            )
        curves = [Curve(name, _trajectory(self._directory / name, mean_shares(reference))) for name in self._routes]
        curves.append(Curve("start", [mean_shares(reference)]))
        curves.append(Curve("Nash-MD, exact", [mean_shares(targets.exact[NASH_MD])]))
        figure = self._directory / "triangle.svg"
        figure.write_text(triangle_svg(curves), encoding="utf-8")
        self._write_summary(summaries, targets)

        self._say("")
        self._console.print(table)
        self._say(f"nash-md is preferred to bradley-terry with probability {duel:.3f}")
        self._say("")
        self._say(triangle_text(curves))
        self._say(_verdict(summaries))
        self._say(f"{self._directory} has both runs, summary.json and {figure.name}; {clock(self._seconds())} in all")

    def _write_summary(self, summaries: dict[str, Summary], targets: Targets) -> None:
        """The Nash-MD route's summary, with both routes' figures side by side."""
        routes = {
            name: {
                "exploitability": _tail(summary),
                "exact_kl": summary.exact_kl,
                "preference": summary.preference,
                "target_exploitability": targets.exact[name].exploitability,
                "target_kl": targets.exact[name].kl,
            }
            for name, summary in summaries.items()
        }
        changes = {
            "name": "demo",
            "output": str(self._directory),
            "routes": routes,
            "wall_seconds": self._seconds(),
            "sft_seconds": self._sft_seconds,
        }
        summaries[NASH_MD].model_copy(update=changes).write(self._directory / "summary.json")

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def run_demo(overrides: Sequence[str], output: Path | None, train: Callable[[RunConfig], int]) -> int:
    """Runs both routes with `overrides` on top of their presets, those of opponents with Nash-MD's alone; returns the
    exit code.

    `output`, or the setting of that name, must be free; without either it is the next free one of `DIRECTORY`.
    """
    from launch.settings.loading import load_config

    common = [override for override in overrides if not override.startswith(OF_OPPONENTS)]
    routes = {
        BRADLEY_TERRY: load_config(f"embedded-{BRADLEY_TERRY}", common),
        NASH_MD: load_config(f"embedded-{NASH_MD}", overrides),
    }
    given = output or routes[NASH_MD].output
    directory = Path(given) if given else next_free(DIRECTORY)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UsageError(f"output directory {directory} is not empty; choose another with --output DIR")
    return Demo(routes, directory, train).run()


def _check(name: str, route: RunConfig) -> None:
    """Raises UsageError unless `route` is what its name says, measured by enumeration on the intransitive task."""
    loss, judge = ROUTES[name]
    checks: tuple[tuple[str, object, object], ...] = (
        ("world.task", route.world.task, "intransitive"),
        ("model.path", route.model.path, WORLD),
        ("model.reference", route.model.reference, None),
        ("prompts.source", route.prompts.source, WORLD),
        ("sampling.max_new_tokens", route.sampling.max_new_tokens, MAX_NEW_TOKENS),
        (f"{name}'s learner.loss.kind", route.learner.loss.kind, loss),
        (f"{name}'s judging.judge.kind", route.judging.judge.kind, judge),
    )
    for setting, given, needed in checks:
        if given != needed:
            raise UsageError(
                f"the demo compares two routes on the embedded world's intransitive task, and {setting} is set to "
                f"{given}; leave it out, since only `offbeat train` can take it"
            )
    if not route.evaluation.exact_every_updates:
        raise UsageError(
            "the demo compares its routes by enumeration, and evaluation.exact_every_updates is set to 0; leave it "
            "out, or set it to 1 or more"
        )


def _beta_at_the_end(loss: GameLossConfig) -> float:
    """Return the start's weight in the final opponent: an average of constant policies is that policy."""
    return 0.0 if loss.opponent.kind == "ema" else beta_of(loss)


def _with_tau(route: RunConfig, tau: float) -> RunConfig:
    loss = route.learner.loss.model_copy(update={"tau": tau})
    return route.model_copy(update={"learner": route.learner.model_copy(update={"loss": loss})})


def _summary(directory: Path) -> Summary:
    return Summary.model_validate_json((directory / "summary.json").read_text(encoding="utf-8"))


def _tail(summary: Summary) -> float:
    """Exploitability of a route's end: the mean over its last tenth, which a single evaluation is noisy around."""
    value = summary.exploitability if summary.exploitability_tail is None else summary.exploitability_tail
    assert value is not None
    return value


def _trajectory(directory: Path, start: tuple[float, float, float]) -> list[tuple[float, float, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [start, *((line["family_0"], line["family_1"], line["family_2"]) for line in lines if "family_0" in line)]


def _verdict(summaries: dict[str, Summary]) -> str:
    rival, nash = (_tail(summaries[name]) for name in (BRADLEY_TERRY, NASH_MD))
    return (
        f"the best answer to bradley-terry wins {0.5 + rival:.0%} of the time, the best answer to nash-md "
        f"{0.5 + nash:.0%}"
    )
