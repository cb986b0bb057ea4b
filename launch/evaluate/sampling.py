"""Sampling and judging for the verbs that evaluate: prompts go to all generators, groups to all judges."""

import asyncio
import math
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from actors.errors import RunError, ray_logs
from actors.foreign.text import many, shown
from actors.records import Failure, Group, Lease, Prompt
from launch.run.pools.countdown import Countdown
from launch.run.pools.judge_pool import JudgePool, judge_all
from launch.run.pools.waiting import until_ready
from launch.run.protocols import GeneratorDeadError, GeneratorPort, GeneratorUnavailableError, JudgePort
from launch.settings.run import RunConfig

COLLECT_SECONDS = 2.0


def line_printer() -> Callable[[str], None]:
    """Return a function that prints a message as a line of its own, on standard error."""
    console = Console(stderr=True, highlight=False)
    return lambda text: console.print(Text(shown(f"offbeat: {text}", lines=True)), soft_wrap=True)


async def judged_groups(
    config: RunConfig, judges: Sequence[JudgePort], groups: Sequence[Group], say: Callable[[str], None]
) -> list[Group]:
    """Return judged groups, in order. Raises RunError if one could not be judged."""
    answers = await judge_all(JudgePool(judges, say), groups, config.judging, say)
    failed = [answer.reason for answer in answers if isinstance(answer, Failure)]
    if failed:
        raise RunError(f"{len(failed)} of {many(len(answers), 'prompt')} could not be judged; the first: {failed[0]}")
    return [answer for answer in answers if isinstance(answer, Group)]


async def sample(
    generators: Sequence[GeneratorPort], prompts: Sequence[Prompt], say: Callable[[str], None]
) -> list[Group]:
    """Sample one group for each prompt from the starting weights, with the prompts dealt out to the generators.

    Returns groups in the order of `prompts`. A restarted generator gets its open prompts again. Raises RunError if a
    generator dies for good or a prompt cannot be answered.
    """
    leases = [Lease(index, 0, prompt, 0, math.inf, draw="policy") for index, prompt in enumerate(prompts)]
    shares = [leases[number :: len(generators)] for number in range(len(generators))]
    countdown = Countdown("sampling", len(prompts), say)
    served = await asyncio.gather(
        *[_serve(port, share, countdown, say) for port, share in zip(generators, shares, strict=True)]
    )
    groups = {group.lease.index: group for part in served for group in part}
    return [groups[index] for index in range(len(prompts))]


async def _serve(
    port: GeneratorPort, leases: Sequence[Lease], countdown: Countdown, say: Callable[[str], None]
) -> list[Group]:
    waiting = {lease.index: lease for lease in leases}
    groups: list[Group] = []
    while waiting:
        try:
            await until_ready(port.ready(), port.name, "loading its model", say)
            countdown.begin()
            await port.submit(list(waiting.values()))
            while waiting:
                for item in await port.collect(COLLECT_SECONDS):
                    index = item.lease_index if isinstance(item, Failure) else item.lease.index
                    lease = waiting.pop(index, None)  # None: answered before and after a broken connection
                    if isinstance(item, Group) and lease is not None:
                        groups.append(item)
                        countdown.add()
                    elif isinstance(item, Failure) and lease is not None:
                        raise RunError(f"prompt '{lease.prompt.id}' could not be generated: {item.reason}")
        except GeneratorUnavailableError:
            continue  # Ray restarts it, at most generators.max_restarts times
        except GeneratorDeadError as error:
            raise RunError(f"{error}; look in {ray_logs()} on its host, then run again") from error
    return groups
