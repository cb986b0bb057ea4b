"""The embedded world as a plug-in of a run: its defaults, its own starting policy, and evaluation by enumeration.

Evaluation is one more receiver of publications: it enumerates the policy that they hold instead of sampling from it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors import world
from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.errors import UsageError, writing
from actors.files import atomic_directory, open_lock
from actors.foreign.documents import read_object
from actors.foreign.text import many
from actors.records import TRANSPORTS
from actors.settings import STARTS, WORLD
from actors.world import MAX_NEW_TOKENS, POLICY_SETTINGS_FILE, VOCABULARY, Task, World
from launch.run.pools.countdown import telling
from launch.run.protocols import Publication, PublicationObserver, RunPlugin
from launch.settings.run import RunConfig

if TYPE_CHECKING:
    import numpy as np

    from learner.world import exact


class EmbeddedWorld(RunPlugin):
    """A run on the world's prompts, or from the world's policy, or both."""

    def __init__(self) -> None:
        self._sft_seconds = 0.0
        self._evaluation: ExactEvaluation | None = None

    def resolve(self, config: RunConfig) -> RunConfig:
        """Let completions end at any token that no response may hold, and give the world's judges its task and seed."""
        if config.model.path == WORLD or (Path(config.model.path) / POLICY_SETTINGS_FILE).is_file():
            self.opponent_name = "the SFT policy"
        if config.prompts.source == WORLD and not config.sampling.stop_token_ids:
            sampling = config.sampling.model_copy(update={"stop_token_ids": world.STOP_TOKEN_IDS})
            config = config.model_copy(update={"sampling": sampling})
        judging = config.judging.with_world(config.world.task, config.world.seed)
        return config.model_copy(update={"judging": judging})

    def check_model(self, config: RunConfig) -> bool:
        if config.model.path == WORLD and config.model.reference is not None:
            raise UsageError(
                f"model.reference is {config.model.reference!r} and model.path is world, whose policy is trained by "
                "the run and is its own reference; leave model.reference out, or give both as directories"
            )
        return config.model.path != WORLD

    def tokenizer(self, config: RunConfig) -> Any:
        return world.tokenizer() if config.model.path == WORLD else super().tokenizer(config)

    def starting_policy(
        self, config: RunConfig, directory: Path, say: Callable[[str], None], on_all_cores: Callable[..., Any]
    ) -> str:
        if config.model.path != WORLD:
            return config.model.path
        from learner.world.policy import SIZES, train_sft

        world = config.world
        settings = {"updates": world.sft_updates, "seed": world.seed, "size": SIZES[world.size]}
        say(f"supervised training of the world's policy: {many(world.sft_updates, 'update')}")
        started = time.monotonic()
        with telling("supervised training", say):
            if (shared := os.environ.get(STARTS)) is None or directory.exists():
                on_all_cores(train_sft, directory, **settings)
            else:
                kept = Path(shared) / f"{world.size}-{world.seed}-{world.sft_updates}"
                _share(kept, directory, lambda: on_all_cores(train_sft, kept, **settings))
        self._sft_seconds = time.monotonic() - started
        return str(directory)

    def observers(
        self, config: RunConfig, reference_dir: Path, say: Callable[[str], None]
    ) -> Sequence[PublicationObserver]:
        self._evaluation = exact_evaluation(config, reference_dir, say)
        return () if self._evaluation is None else (self._evaluation,)

    def fixed(self, config: RunConfig) -> dict[str, Any]:
        if config.model.path != WORLD:
            return {}
        world = config.world.model_dump(mode="json")
        if world["size"] == "medium":
            del world["size"]  # the only size of older runs, which do not name it
        return {"world": world}

    def scores(self) -> dict[str, float | None]:
        if self._evaluation is None:
            return {}
        history = self._evaluation.history
        return {"exploitability": history[-1].exploitability if history else None}

    def summary(self, updates: int) -> dict[str, Any]:
        evaluation = self._evaluation
        last = evaluation.history[-1] if evaluation is not None and evaluation.history else None
        values: dict[str, Any] = {"sft_seconds": self._sft_seconds, "family_shares": last and last.family_shares}
        if evaluation is not None and last is not None:
            values |= {
                "exploitability": last.exploitability,
                "exploitability_tail": evaluation.tail(updates),
                "exact_kl": last.exact_kl,
                "preference": last.preference,
            }
        return values


def _share(kept: Path, directory: Path, train: Callable[[], None]) -> None:
    """Copy the policy `kept` to `directory`. The first of several processes trains it, the others wait."""
    with writing(f"to {kept}", "then use --resume"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(kept.with_suffix(".lock"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            train()
    finally:
        os.close(lock)
    with writing(directory, "then use --resume"), atomic_directory(directory) as fresh:
        shutil.copytree(kept, fresh, dirs_exist_ok=True)


@dataclass(frozen=True, slots=True)
class ExactFigures:
    """One evaluation by enumeration. Means over the 16 prompts."""

    update: int
    exploitability: float
    exact_kl: float  # KL(policy || reference), nats per completion
    preference: float  # P(policy > reference)
    family_shares: tuple[float, float, float] | None  # intransitive task: `mean_shares`

    def metrics(self) -> dict[str, float]:
        """Return the figures as `metrics.jsonl` names them."""
        shares = self.family_shares or ()
        return {
            "exploitability": self.exploitability,
            "exact_kl": self.exact_kl,
            "exact_preference": self.preference,
            **{f"family_{number}": share for number, share in enumerate(shares)},
        }


def mean_shares(policy: exact.Policy) -> tuple[float, float, float]:
    """Average `exact.relative_family_shares` over prompts: the shares of the reference's favourite family, of the one
    that beats it, and of the one that beats that."""
    from learner.world import exact

    first, second, third, _ = exact.relative_family_shares(policy).mean(axis=0)
    return float(first), float(second), float(third)


@dataclass
class ExactEvaluation:
    """Measures policies against one reference, at the first publication after every `every` updates and at the end.

    `reference_dir` holds the reference, a policy of the embedded world; `temperature` is the sampling temperature.
    `adapted`: the directory of the base and its adapters' settings, if publications hold adapters alone.
    """

    task: Task
    seed: int
    reference_dir: Path
    temperature: float = 1.0
    every: int = 1
    updates: int = 0  # of the whole run
    updates_per_publish: int = 1
    threads: int = 1
    """Threads, as many as the learner has: then equal weights give equal figures."""
    adapted: tuple[Path, LoraConfig] | None = None
    history: list[ExactFigures] = field(default_factory=list)
    _parts: Any = None
    _model: Any = None

    def due(self, update: int) -> bool:
        return update % self.every < self.updates_per_publish or update == self.updates

    async def observe(self, update: int, publication: Publication) -> dict[str, float]:
        tensors = await publication.tensors()
        self.history.append(await asyncio.to_thread(self._measure_weights, update, tensors))
        return self.history[-1].metrics()

    async def aside(self, publication: Publication) -> dict[str, float]:
        figures = await asyncio.to_thread(self._measure_weights, self.updates, await publication.tensors())
        return figures.metrics()

    def _measure_weights(self, update: int, tensors: dict[str, Any]) -> ExactFigures:
        import torch

        from learner.backend.models import load_model
        from learner.world import exact

        if self._model is None:
            base, lora = self.adapted or (self.reference_dir, None)
            self._model = load_model(base, "float32")
            if lora is not None:
                peft_form.adapt(self._model, lora)
        if self.adapted is None:
            self._model.load_state_dict(tensors, strict=False)
        else:
            peft_form.load(self._model, tensors)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            table = exact.exact_policy(self._model, self.temperature).token_logprobs
        finally:
            torch.set_num_threads(threads)
        return self.measure(update, table.astype("float32"))

    def measure(self, update: int, token_logprobs: np.ndarray) -> ExactFigures:
        """Evaluate the policy with this table [16, 259, 18] after `update` updates.

        Raises UsageError if the reference is not a policy of the embedded world.
        """
        from learner.world import exact

        if self._parts is None:
            self._parts = World(self.task, self.seed), exact.load_policy(self.reference_dir, self.temperature)
        world, reference = self._parts
        policy = exact.ExactPolicy(token_logprobs)
        return ExactFigures(
            update=update,
            exploitability=exact.exploitability(policy, world),
            exact_kl=exact.exact_kl(policy, reference),
            preference=exact.expected_preference(policy, reference, world),
            family_shares=mean_shares(policy) if self.task == "intransitive" else None,
        )

    def tail(self, updates: int) -> float | None:
        """Average exploitability over the last tenth of `updates`; None if nothing was measured there."""
        last = [figures.exploitability for figures in self.history if figures.update > 0.9 * updates]
        return sum(last) / len(last) if last else None


def exact_evaluation(config: RunConfig, reference_dir: Path, say: Callable[[str], None]) -> ExactEvaluation | None:
    """Return the evaluation by enumeration if prompts and vocabulary are the embedded world's, else None."""
    every, transport = config.evaluation.exact_every_updates, config.publication.transport
    base = reference_dir if config.model.path == WORLD else Path(config.model.path)
    model = reference_dir / "config.json"
    if config.prompts.source != WORLD or not every or not model.is_file():
        return None
    if read_object(model).get("vocab_size") != len(VOCABULARY):
        return None
    if config.sampling.max_new_tokens != MAX_NEW_TOKENS:
        say(
            f"no evaluation by enumeration: it is of completions of up to {MAX_NEW_TOKENS} tokens, and "
            f"sampling.max_new_tokens is {config.sampling.max_new_tokens}"
        )
        return None
    if not TRANSPORTS[transport].readable:
        say(
            f"no evaluation by enumeration: publication.transport {transport} sends weights to generators alone; set "
            "it to shm or object_store"
        )
        return None
    return ExactEvaluation(
        config.world.task,
        config.world.seed,
        reference_dir,
        config.sampling.temperature,
        every=every,
        updates=config.updates,
        updates_per_publish=config.replay.updates_per_publish,
        threads=max(1, int(config.learner.cpus_per_rank)),
        adapted=None if config.adapter is None else (base, config.adapter),
    )
