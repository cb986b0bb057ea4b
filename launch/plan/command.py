"""The command `offbeat plan`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def plan(
    run: Annotated[
        Path | None,
        Argument(metavar="RUN", help="directory of a finished run to measure; none: from the numbers below"),
    ] = None,
    settings: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="another setting; may be repeated")
    ] = None,
    gpus: Annotated[int | None, Option(metavar="N", help="find the best split of N GPUs")] = None,
    against: Annotated[
        Path | None, Option(metavar="RUN", help="predict what this run measured, from the first one")
    ] = None,
    price: Annotated[float | None, Option(metavar="MONEY", help="of one GPU for an hour")] = None,
    generator_seconds: Annotated[
        float | None, Option(metavar="SECONDS", help="of a group at a generator that samples it alone")
    ] = None,
    generator_spread: Annotated[
        float | None, Option(metavar="SHARE", help="their standard deviation over their mean")
    ] = None,
    batching: Annotated[
        float | None, Option(metavar="FACTOR", help="groups/s of a generator with many at a time over those with one")
    ] = None,
    update_seconds: Annotated[float | None, Option(metavar="SECONDS", help="of an update with learner.ranks")] = None,
    efficiency: Annotated[
        float | None, Option(metavar="SHARE", help="of a rank that each learner rank after the first adds")
    ] = None,
    publish_seconds: Annotated[
        float | None, Option(metavar="SECONDS", help="that the learner stands still for each publication")
    ] = None,
    take_seconds: Annotated[
        float | None, Option(metavar="SECONDS", help="that a generator stands still to take a version")
    ] = None,
    judge_seconds: Annotated[float | None, Option(metavar="SECONDS", help="of a judge for a group")] = None,
    driver_seconds: Annotated[float | None, Option(metavar="SECONDS", help="of the driver's core for a group")] = None,
    cores: Annotated[
        float | None, Option(metavar="N", help="that generators and learner share, on CPU; unset: each has its own")
    ] = None,
    seed: Annotated[int, Option(help="of the times that are drawn")] = 0,
    json: Annotated[bool, Option("--json", help="print one JSON object instead of lines")] = False,
) -> int:
    """Predict speed, staleness and cost of a run; find the best split of GPUs."""
    from launch.plan.derive import Given
    from launch.plan.plan import Request, run_plan

    given = Given(
        generator_seconds=generator_seconds,
        generator_spread=generator_spread,
        batching=batching,
        update_seconds=update_seconds,
        efficiency=efficiency,
        publish_seconds=publish_seconds,
        take_seconds=take_seconds,
        judge_seconds=judge_seconds,
        driver_seconds=driver_seconds,
        cores=cores,
    )
    request = Request(
        run=run, against=against, settings=settings or (), gpus=gpus, price=price, seed=seed, as_json=json
    )
    return run_plan(request, given)
