"""Programs of ranks that write checkpoints, and of other numbers of ranks that resume from them.

`python -m tests.learner.backend.other_ranks RANK WORLD PORT DIRECTORY SCENARIO`, as `tests.learner.backend.ranks`,
whose `run_ranks` starts them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from learner.training.process import set_environment
from tests.learner.backend.ranks import CONFIG, OPTIMIZER, full_state, place_of, random_pairs, spec_of

CASES = (
    (0, "float32"),
    (1, "float32"),
    (2, "float32"),
    (3, "float32"),
    (1, "bfloat16"),
    (2, "bfloat16"),
    (3, "bfloat16"),
)
"""ZeRO stages and dtypes."""
# With Adam's usual epsilon rounding decides where a weight goes whose gradient is next to nothing.
LEARNER = CONFIG.model_copy(update={"optimizer": OPTIMIZER.model_copy(update={"eps": 1e-4})})
UPDATES = 9
"""Three on one rank, three on two, three on one again."""
BATCHES = [random_pairs(seed) for seed in range(UPDATES)]


def checkpoint_of(directory: Path, world: int, case: tuple[int, str]) -> Path:
    """What `world` ranks wrote: one after three updates, two after six."""
    return directory / f"by-{world}-zero-{case[0]}-{case[1]}"


def make_engine(directory: Path, case: tuple[int, str]) -> Any:
    """An engine whose embeddings are tied, but under ZeRO-2."""
    from learner.training.engine import TrainEngine

    stage, dtype = case
    config = LEARNER.model_copy(update={"zero_stage": stage, "dtype": dtype})
    return TrainEngine(spec_of(directory / ("model" if stage == 2 else "tied"), config, total_updates=UPDATES))


def whole_state(engine: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Weights, and each parameter's float32 weights and Adam moments, put together from the ranks. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    policy = engine.policy
    states = {"weights": full_state(engine), "master": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for name, parameter in policy._engine.module.named_parameters():
        if engine.config.zero_stage == 0:
            states["master"][name] = parameter.detach().clone()
            moments = policy._engine.optimizer.state[parameter]
            states["exp_avg"][name], states["exp_avg_sq"][name] = (
                moments[key].clone() for key in ("exp_avg", "exp_avg_sq")
            )
            continue
        states["master"][name] = safe_get_full_fp32_param(parameter).clone()
        for key in ("exp_avg", "exp_avg_sq"):
            states[key][name] = safe_get_full_optimizer_state(parameter, key).clone()
    return states


def _advance(engine: Any) -> dict[str, Any]:
    """Three updates, and all that came of them."""
    first = engine.policy.updates
    result = {"stats": [engine.update(batch) for batch in BATCHES[first : first + 3]], "state": whole_state(engine)}
    return result | {"steps": {int(state["step"]) for state in engine.policy._engine.optimizer.state.values()}}


def _resume(engine: Any, checkpoint: Path) -> dict[str, Any]:
    client = engine.policy.load(checkpoint)
    return {
        "client": client,
        "updates": engine.policy.updates,
        "loaded": whole_state(engine),
        "random": torch.get_rng_state(),
    }


def _refusal(engine: Any, checkpoint: Path) -> str:
    """What this rank is told when rank 0 cannot convert, for a reason without words."""
    from actors.errors import UsageError
    from learner.backend import sharded

    def fail(*_: Path) -> None:
        raise AssertionError

    real, sharded.convert = sharded.convert, fail
    try:
        engine.policy.load(checkpoint)
    except UsageError as error:
        return str(error)
    finally:
        sharded.convert = real
    return "no error"


def _run(rank: int, world: int, directory: Path, scenario: str) -> None:
    """`start`: a checkpoint after three updates, then three more. `pass-on`: these three from that checkpoint, another
    one, three more. `end`: these three from the second checkpoint."""
    results = {}
    for case in CASES:
        engine = make_engine(directory, case)
        result = {}
        if scenario == "start":
            result["before"] = _advance(engine)
        else:
            if case == CASES[1]:
                result["refusal"] = _refusal(engine, checkpoint_of(directory, 3 - world, case))
            result["resumed"] = _resume(engine, checkpoint_of(directory, 3 - world, case)) | _advance(engine)
        if scenario != "end":
            # Random states of the ranks apart from each other, as dropout would leave them.
            torch.manual_seed(rank)
            engine.policy.save(checkpoint_of(directory, world, case), {"note": case})
            result["random"] = torch.get_rng_state()
            result["went on"] = _advance(engine)
        engine.policy.destroy()
        results[case] = result
    torch.save(results, directory / f"{scenario}-rank{rank}.pt")


def _main(rank: int, world: int, port: int, directory: Path, scenario: str) -> None:
    set_environment(LEARNER, place_of(rank, world, port))
    torch.set_num_threads(1)
    _run(rank, world, directory, scenario)


if __name__ == "__main__":
    _main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]), sys.argv[5])
