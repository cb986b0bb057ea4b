"""The verb `offbeat plan`: from a finished run or given numbers to a prediction, a comparison, a table of splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.errors import UsageError
from launch.plan.derive import MOST, MOST_GPUS, Derived, Given, from_numbers, from_run, under
from launch.plan.prediction import Cost, Outcome, predict
from launch.plan.recorded import Recorded, read_run
from launch.plan.report import Column, Report, print_json, print_report
from launch.plan.second import from_runs
from launch.plan.split import Cards, best_splits
from launch.settings.loading import RECORDED, load_config
from launch.settings.run import RunConfig

NOWHERE = ("model.path=unused", "prompts.source=unused", "judging.judge.kind=gold")
"""Settings without a default, of which a plan from given numbers reads none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The user's request."""

    run: Path | None = None
    against: Path | None = None
    second: Path | None = None
    settings: Sequence[str] = ()
    gpus: int | None = None
    price: float | None = None
    seed: int = 0
    as_json: bool = False


def run_plan(request: Request, given: Given) -> int:
    """Predict, print, and return the exit code 0. Raises UsageError for a request that cannot be met."""
    _refuse(request)
    given.refuse_nonsense()
    report = _plan(request, given)
    (print_json if request.as_json else print_report)(report)
    return 0


def _refuse(request: Request) -> None:
    if request.against is not None and request.run is None:
        raise UsageError("--against needs a run to predict from; give its directory first: offbeat plan RUN")
    if request.second is not None and request.run is None:
        raise UsageError("--with adds to what a first run shows; give its directory first: offbeat plan RUN --with RUN")
    if request.against is not None and (request.settings or request.gpus is not None):
        raise UsageError("--against takes the settings of the run that it names; leave out --set and --gpus")
    for option, value, most in (("--gpus", request.gpus, MOST_GPUS), ("--price", request.price, MOST)):
        if value is not None and not 0 < value <= most:
            raise UsageError(f"{option}: given {value:g}; allowed: above 0, and at most {most:g}")


def _plan(request: Request, given: Given) -> Report:
    run = None if request.run is None else read_run(request.run)
    if run is None:
        config = load_config(None, [*NOWHERE, *request.settings])
        derived = from_numbers(given, config)
        subject = "given numbers"
    else:
        derived = from_run(run, given) if request.second is None else from_runs(run, read_run(request.second), given)
        config, subject = run.config, f"run {run.name}"
    columns: list[Column] = []
    if request.against is not None:
        assert run is not None
        other = read_run(request.against)
        subject = f"run {other.name}, predicted from {run.name}"
        config, derived, columns = _against(run, derived, other, request)
    elif run is not None:
        columns = [
            Column("measured", run.measured(), _cost(run.config, run.seconds, request.price)),
            _predicted(derived, run.config, request, "predicted"),
        ]
        if request.settings:
            config = load_config(Path(run.name) / RECORDED, request.settings)
            derived = under(derived, run.config, config)
            columns.append(_predicted(derived, config, request, "with --set"))
    else:
        columns = [_predicted(derived, config, request, "predicted")]
    report = Report(subject=subject, config=config, derived=derived, columns=columns)
    if request.gpus is None:
        return report
    splits = best_splits(derived, config.learner.ranks, request.gpus, _cards(config), request.price)
    return replace(report, gpus=request.gpus, splits=splits)


def _against(
    run: Recorded, derived: Derived, other: Recorded, request: Request
) -> tuple[RunConfig, Derived, list[Column]]:
    """Predict what `other` measured from `run` and the settings of `other`."""
    derived = under(derived, run.config, other.config)
    derived = replace(derived, model=replace(derived.model, updates=other.updates))
    columns = [
        Column("measured", other.measured(), _cost(other.config, other.seconds, request.price)),
        _predicted(derived, other.config, request, "predicted"),
    ]
    return other.config, derived, columns


def _predicted(derived: Derived, config: RunConfig, request: Request, name: str) -> Column:
    outcome: Outcome = predict(derived.model, request.seed)
    return Column(name, outcome, _cost(config, outcome.seconds, request.price))


def _cards(config: RunConfig) -> Cards:
    """Return what one generator and one rank reserve; of a run on CPUs, one GPU each."""
    generators, learner, reference = config.generators, config.learner, config.reference
    if learner.gpus_per_rank == 0.0:
        return Cards()
    return Cards(
        generator=generators.tensor_parallel_size * generators.gpus,
        rank=learner.gpus_per_rank,
        other=reference.count * reference.gpus,
    )


def _cost(config: RunConfig, seconds: float, price: float | None) -> Cost:
    on_gpus = config.learner.gpus_per_rank > 0.0
    total = _cards(config).total(config.generators.count, config.learner.ranks) if on_gpus else 0.0
    return Cost(total, seconds, price)
