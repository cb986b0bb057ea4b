"""The demo: two routes from one start in the embedded world, and how exploitable each of them ends.

In the intransitive task every family of answers loses to another one. A Bradley-Terry reward must rank the families, so
its optimum is exploitable; Nash-MD mixes them. Both routes are ordinary runs.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.errors import UsageError, writing
from actors.foreign.text import many, shown
from actors.host import threads, usable_cores
from actors.settings import WORLD
from actors.world import MAX_NEW_TOKENS, World, corpus_outcome_probabilities
from launch.demo.triangle import Curve, triangle_text
from launch.output.board import clock
from launch.output.run_directory import next_free
from launch.output.summary import Summary
from launch.run.pools.countdown import telling
from launch.run.staleness_limit import beta_of
from launch.run.world import mean_shares
from launch.settings.run import RunConfig
from learner.losses.config import GameLossConfig

if TYPE_CHECKING:
    from learner.world.equilibria import Equilibrium
    from learner.world.exact import ExactPolicy

BRADLEY_TERRY, NASH_MD = "bradley-terry", "nash-md"
DIRECTORY = Path("runs/demo")
OF_OPPONENTS = ("learner.loss.opponent", "learner.loss.correction.opponent")
"""Prefixes of the settings that only a loss with an opponent reads."""
ROUTES = {BRADLEY_TERRY: ("rloo", "bradley_terry"), NASH_MD: ("nash_pg", "gold")}
"""Kinds of loss and judge that define each route."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The routes' limits, by enumeration."""

    world: World
    reference: ExactPolicy  # the common start
    bradley_terry_tau: float
    """The tau at which the Bradley-Terry optimum has the KL of the Nash-MD limit."""
    exact: dict[str, Equilibrium]  # by route


class Demo:
    """Both routes below one directory, which must not exist.

    `routes` are the runs' configurations, `bradley-terry` first, with the same world and model. `train` runs one of
    them and returns its exit code. Raises UsageError if the routes cannot be compared by enumeration.
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
        """Train both routes, print the comparison and write `summary.json`.

        Returns 0, or the exit code of the first route that was not completed.
        """
        start = self._train_start()
        targets = find_targets(self._routes[NASH_MD], start)
        rival, nash = (targets.exact[name] for name in (BRADLEY_TERRY, NASH_MD))
        self._say(
            f"exact targets: Nash-MD exploitability {nash.exploitability:.3f} at KL {nash.kl:.2f}; "
            f"Bradley-Terry {rival.exploitability:.3f} at the same KL, with tau {targets.bradley_terry_tau:.3f}"
        )
        for name, route in self._routes.items():
            self._say(f"\n{name}: {many(route.updates, 'update')}")
            model = route.model.model_copy(update={"path": str(start)})
            if name == BRADLEY_TERRY:
                route = _with_tau(route, targets.bradley_terry_tau)
            code = self._train(route.model_copy(update={"output": str(self._directory / name), "model": model}))
            if code:
                return code
        self._compare(targets)
        return 0

    def _train_start(self) -> Path:
        """Train the supervised policy that both routes start from; return its directory."""
        from learner.backend import manifest
        from learner.world.policy import SIZES, train_sft

        world = next(iter(self._routes.values())).world
        path = self._directory / "start"
        self._say(f"supervised training of the world's policy: {many(world.sft_updates, 'update')}")
        own = threads(usable_cores())
        with telling("supervised training", self._say):
            report = train_sft(path, updates=world.sft_updates, seed=world.seed, threads=own, size=SIZES[world.size])
        with writing(path, "or choose another directory with --output"):
            manifest.seal(path)
        self._sft_seconds = report.seconds
        self._say(f"{report.parameters:,} parameters, {report.loss:.2f} nats per answer, in {clock(report.seconds)}")
        return path

    def _compare(self, targets: Targets) -> None:
        from learner.world import exact

        summaries = {name: _summary(self._directory / name) for name in self._routes}
        finals = {
            name: exact.load_policy(self._directory / name / "final", route.sampling.temperature)
            for name, route in self._routes.items()
        }
        duel = exact.expected_preference(finals[NASH_MD], finals[BRADLEY_TERRY], targets.world)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("", "exploitability", "KL", "beats the start", "exact target"):
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        table.add_row("start (SFT)", f"{exact.exploitability(targets.reference, targets.world):.3f}", "0.00", "0.500")
        for name, summary in summaries.items():
            target = targets.exact[name]
            measured = f"{_tail(summary):.3f}", f"{summary.exact_kl:.2f}", f"{summary.preference:.3f}"
            table.add_row(name, *measured, f"{target.exploitability:.3f} at KL {target.kl:.2f}")
        self._write_summary(summaries, targets)

        self._say("")
        self._console.print(table)
        self._say(f"nash-md is preferred to bradley-terry with probability {duel:.3f}\n")
        self._say(triangle_text(family_curves(self._directory, targets)))
        rival, nash = (f"{0.5 + _tail(summaries[name]):.0%}" for name in (BRADLEY_TERRY, NASH_MD))
        self._say(f"the best answer to bradley-terry wins {rival} of the time, the best answer to nash-md {nash}")
        self._say(f"{self._directory} has both runs and summary.json; {clock(self._seconds())} in all. Compare them:")
        self._say(f"    offbeat report {' '.join(shlex.quote(str(self._directory / name)) for name in self._routes)}")

    def _write_summary(self, summaries: dict[str, Summary], targets: Targets) -> None:
        """Write the Nash-MD summary, with both routes side by side."""
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
        self._console.print(Text(shown(text, lines=True)), soft_wrap=True)


def find_targets(route: RunConfig, start: Path) -> Targets:
    """Enumerate both routes' limits from the Nash-MD `route`, with the policy in `start` as reference."""
    from learner.world import equilibria, exact

    world = World("intransitive", route.world.seed)
    reference = exact.load_policy(start, route.sampling.temperature)
    loss = route.learner.loss
    assert isinstance(loss, GameLossConfig)
    mu, tau, beta = reference.probabilities, loss.tau, _beta_at_the_end(loss)
    fixed_point = equilibria.nash_md_fixed_point(world, mu, tau, beta)
    pairs = corpus_outcome_probabilities()  # the judge's reward is fitted to these
    rival_tau = equilibria.bradley_terry_tau_at_kl(world, mu, fixed_point.kl, pairs)
    rival = equilibria.bradley_terry_optimum(world, mu, rival_tau, pairs)
    return Targets(world, reference, rival_tau, {BRADLEY_TERRY: rival, NASH_MD: fixed_point})


def family_curves(directory: Path, targets: Targets) -> list[Curve]:
    """Return the family shares of both routes in a demo's `directory`, of their start, and of the Nash-MD limit."""
    start = mean_shares(targets.reference)
    curves = []
    for name in ROUTES:
        lines = map(json.loads, (directory / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        shares = [(line["family_0"], line["family_1"], line["family_2"]) for line in lines if "family_0" in line]
        curves.append(Curve(name, [start, *shares]))
    return [*curves, Curve("start", [start]), Curve("Nash-MD, exact", [mean_shares(targets.exact[NASH_MD])])]


def run_demo(overrides: Sequence[str], output: Path | None, train: Callable[[RunConfig], int]) -> int:
    """Run both routes with `overrides` on top of their presets; settings of opponents apply to Nash-MD only.

    `output`, or the setting of that name, must be free; the default is the next free name of `DIRECTORY`. Returns the
    exit code.
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
    """Raise UsageError unless `route` is what its name says, measured by enumeration on the intransitive task."""
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
                f"{setting} is set to {given}, and the demo needs {'it unset' if needed is None else needed}; leave it "
                "out, or use `offbeat train`"
            )
    if not route.evaluation.exact_every_updates:
        raise UsageError(
            "evaluation.exact_every_updates is set to 0, and the demo compares its routes by enumeration; leave it "
            "out, or set it to 1 or more"
        )


def _beta_at_the_end(loss: GameLossConfig) -> float:
    """Return the start's weight in the final opponent: the average of a constant policy is that policy."""
    return 0.0 if loss.opponent.kind == "ema" else beta_of(loss)


def _with_tau(route: RunConfig, tau: float) -> RunConfig:
    loss = route.learner.loss.model_copy(update={"tau": tau})
    return route.model_copy(update={"learner": route.learner.model_copy(update={"loss": loss})})


def _summary(directory: Path) -> Summary:
    return Summary.model_validate_json((directory / "summary.json").read_text(encoding="utf-8"))


def _tail(summary: Summary) -> float:
    """Return a route's final exploitability: the mean over its last tenth, because one evaluation is noisy."""
    value = summary.exploitability if summary.exploitability_tail is None else summary.exploitability_tail
    assert value is not None
    return value
