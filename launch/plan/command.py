"""The command `offbeat plan`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Run = Annotated[
    Path | None, Argument(metavar="RUN", help="directory of a finished run to measure; none: from the numbers below")
]
Against = Annotated[Path | None, Option(metavar="RUN", help="predict what this run measured, from the first one")]
With = Annotated[
    Path | None,
    Option("--with", metavar="RUN", help="measure a second run, with another generators.count or prompts_per_update"),
]
Set = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="another setting; may be repeated")]
GroupSeconds = Annotated[
    float | None, Option(metavar="SECONDS", help="of a group at a generator that samples it alone")
]
Spread = Annotated[float | None, Option(metavar="SHARE", help="their standard deviation over their mean")]
Batching = Annotated[
    float | None, Option(metavar="FACTOR", help="groups/s of a generator with many at a time over those with one")
]
UpdateSeconds = Annotated[float | None, Option(metavar="SECONDS", help="of an update with learner.ranks")]
Efficiency = Annotated[
    float | None, Option(metavar="SHARE", help="of a rank that each learner rank after the first adds")
]
PublishSeconds = Annotated[
    float | None, Option(metavar="SECONDS", help="that the learner stands still for each publication")
]
TakeSeconds = Annotated[float | None, Option(metavar="SECONDS", help="that a generator stands still to take a version")]
Judging = Annotated[float | None, Option(metavar="SECONDS", help="of a judge for a group")]
Driving = Annotated[float | None, Option(metavar="SECONDS", help="of the driver's core for a group")]
Cores = Annotated[
    float | None, Option(metavar="N", help="that generators and learner share, on CPU; unset: each has its own")
]


def plan(
    run: Run = None,
    settings: Set = None,
    gpus: Annotated[int | None, Option(metavar="N", help="find the best split of N GPUs")] = None,
    against: Against = None,
    second: With = None,
    price: Annotated[float | None, Option(metavar="MONEY", help="of one GPU for an hour")] = None,
    generator_seconds: GroupSeconds = None,
    generator_spread: Spread = None,
    batching: Batching = None,
    update_seconds: UpdateSeconds = None,
    efficiency: Efficiency = None,
    publish_seconds: PublishSeconds = None,
    take_seconds: TakeSeconds = None,
    judge_seconds: Judging = None,
    driver_seconds: Driving = None,
    cores: Cores = None,
    seed: Annotated[int, Option(help="of the times that are drawn")] = 0,
    json: Annotated[bool, Option("--json", help="print one JSON object instead of lines")] = False,
) -> int:
    """Predict speed, staleness, cost and the best split of GPUs."""
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
        run=run,
        against=against,
        second=second,
        settings=settings or (),
        gpus=gpus,
        price=price,
        seed=seed,
        as_json=json,
    )
    return run_plan(request, given)
