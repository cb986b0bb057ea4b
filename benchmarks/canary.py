"""Weight sync in bfloat16: it refuses nothing that is honest, and each of eight faults.

    make pretrained
    python -m benchmarks.canary [--model models/smollm2-135m-instruct] [--honest 300] [--dtype bfloat16]

A learner takes one update of online DPO before each publication, at the learning rate of the GPU presets, 5e-7, and an
engine in a process of its own takes each version. The pairs are two answers of the policy to one prompt each, chosen
without a judge: what is learned does not matter here. Faults are put into the engine's process, or into the learner's
publication, after one honest version; each has three publications to be found in.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import record

PROMPTS = [
    "Name a fruit.", "What is rain?", "Say hello to a friend.", "What do bees make?",
    "Write one line about the sea.", "What is two plus two?", "Why is the sky blue?", "Name three colours.",
]  # fmt: skip
ATTEMPTS = 3  # publications in which a fault must be found
ANSWER_TOKENS = 48


def serve(pipe: Connection, model: str, dtype: str) -> None:
    """The engine, in a process of its own: answers each manifest with why it was refused, or the gap."""
    from actors.errors import RunError
    from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
    from actors.generation.engine import Engine
    from actors.generation.weight_receiver import WeightReceiver

    settings = GeneratorConfig(dtype=dtype, max_model_len=512, max_running_prompts=4, kv_cache_mib=64)
    engine = Engine(GeneratorSpec(model_dir=model, generators=settings, sampling=SamplingConfig(max_new_tokens=16)))
    pipe.send("ready")
    while (request := pipe.recv()) is not None:
        manifest, fault = request
        if fault is not None:
            FAULTS[fault](WeightReceiver)
        began = time.perf_counter()
        try:
            engine.load(manifest)
            pipe.send((None, engine.gap, time.perf_counter() - began))
        except RunError as refusal:
            pipe.send((str(refusal), None, time.perf_counter() - began))


# ---------------------------------------------------------------- faults of an engine


def on_staged(change: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    """Make a fault that changes what was received, after it was checked and before it is loaded."""

    def inject(receiver: Any) -> None:
        load = receiver.load_publication

        def load_changed(self: Any, *arguments: Any) -> Any:
            change(self.staged_publication)
            return load(self, *arguments)

        receiver.load_publication = load_changed

    return inject


def nothing_is_loaded(receiver: Any) -> None:
    load = receiver.load_publication

    def load_nothing(self: Any, *arguments: Any) -> Any:
        self.reload_weights = lambda weights_iterator: None
        return load(self, *arguments)

    receiver.load_publication = load_nothing


def tied_head_stays(receiver: Any) -> None:
    receiver._rebuild_tied_head = lambda self: None


def norm_is_off(receiver: Any) -> None:
    load = receiver._rebuild_tied_head

    def load_and_scale(self: Any) -> None:
        load(self)
        for name, parameter in self.model_runner.get_model().named_parameters():
            if name == "model.norm.weight":
                parameter.data.mul_(1.02)

    receiver._rebuild_tied_head = load_and_scale


def swap_layers(staged: dict[str, Any]) -> None:
    for name in [name for name in staged if name.startswith("model.layers.10.")]:
        other = name.replace(".10.", ".11.", 1)
        staged[name], staged[other] = staged[other], staged[name]


def leave_layer_out(staged: dict[str, Any]) -> None:
    for name in [name for name in staged if name.startswith("model.layers.12.")]:
        del staged[name]


def zero_keys(staged: dict[str, Any]) -> None:
    staged["model.layers.15.self_attn.k_proj.weight"] = 0 * staged["model.layers.15.self_attn.k_proj.weight"]


class Previous:
    """Loads the tensors of the version before."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] | None = None

    def __call__(self, staged: dict[str, Any]) -> None:
        kept, self.kept = self.kept, {name: tensor.clone() for name, tensor in staged.items()}
        if kept is not None:
            staged |= kept


FAULTS: dict[str, Callable[[Any], None]] = {
    "nothing is loaded": nothing_is_loaded,
    "tied output projection stays": tied_head_stays,
    "two layers swapped": on_staged(swap_layers),
    "one layer left out": on_staged(leave_layer_out),
    "version before loaded again": on_staged(Previous()),
    "keys of one layer zero": on_staged(zero_keys),
    "final norm times 1.02": norm_is_off,
}
REPUBLISHED = "tensors of the version before published"
"""The fault of a learner."""


# ---------------------------------------------------------------- the learner


class Learner:
    """A learner rank in this process, without Ray."""

    def __init__(self, model: str, dtype: str, directory: Path) -> None:
        from transformers import AutoTokenizer

        from actors.host import free_port
        from actors.hub import answer_ends
        from learner.config import LearnerConfig, LearnerSpec
        from learner.publication.config import PublicationConfig
        from learner.training.process import RankPlace
        from learner.training.worker import LearnerWorker

        tokenizer = AutoTokenizer.from_pretrained(model)
        self._ends = answer_ends(model, tokenizer)
        self._prompts = [
            tuple(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
                )["input_ids"]
            )
            for text in PROMPTS
        ]
        config = LearnerConfig.model_validate(
            {"dtype": dtype, "zero_stage": 1, "optimizer": {"lr": 5e-7, "schedule": "constant", "warmup_updates": 0}}
        )
        spec = LearnerSpec(
            config=config,
            model_dir=model,
            total_updates=10_000,
            canary_prompt=self._prompts[0],
            canary_tokens=32,
            ends=self._ends,
        )
        place = RankPlace(0, 1, "127.0.0.1", free_port("127.0.0.1"))
        self.worker = LearnerWorker(spec, place, PublicationConfig(), str(directory))
        self.version = 0
        self._pairs = [self._pair(number) for number in range(len(self._prompts))]

    def publish(self) -> Any:
        """Update once, and publish."""
        self.worker.update([self._pairs[self.version % len(self._pairs)]])
        self.worker.retire(self.version - 2)
        self.version += 1
        return self.worker.export(self.version)

    def current(self) -> Any:
        """Publish without an update."""
        return self.worker.export(self.version)

    def _pair(self, number: int) -> Any:
        from actors.records import Completion, Pair
        from learner.tensors.sampling import sample_answer

        model, prompt = self.worker._model.model, self._prompts[number]
        answers = [
            sample_answer(model, prompt, ANSWER_TOKENS - 8 * k, self._ends) for k in range(2)
        ]  # of two lengths, or they would start alike and be scored alike
        scored = self.worker.score([(prompt, answer) for answer in answers])
        chosen, rejected = (
            Completion(answer, tuple(logprobs), (0,) * len(answer), "", True)
            for answer, (logprobs, _) in zip(answers, scored, strict=True)
        )
        return Pair(number, prompt, chosen, rejected, 1.0)


class EngineProcess:
    """An engine at the other end of a pipe."""

    def __init__(self, model: str, dtype: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, model, dtype), daemon=True)
        self._process.start()
        assert self._pipe.recv() == "ready"

    def take(self, manifest: Any, fault: str | None = None) -> tuple[str | None, float | None, float]:
        """Return why it was refused, the gap on the rollout, and seconds."""
        self._pipe.send((manifest, fault))
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(60)


def found_after(learner: Learner, fault: str, model: str, dtype: str) -> tuple[int | None, str]:
    """Publications until the fault is refused, and the reason; None if it is not found in time."""
    engine = EngineProcess(model, dtype)
    try:
        refusal, _, _ = engine.take(learner.current())
        assert refusal is None, refusal
        for attempt in range(1, ATTEMPTS + 1):
            before = learner.current()
            manifest = learner.publish()
            if fault == REPUBLISHED:
                manifest = replace(manifest, tensors=before.tensors, location=before.location)
            refusal, _, _ = engine.take(manifest, fault if fault in FAULTS and attempt == 1 else None)
            if refusal is not None:
                return attempt, refusal
        return None, ""
    finally:
        engine.close()


def honest(learner: Learner, publications: int, model: str, dtype: str) -> dict[str, Any]:
    """Refusals of honest versions, and how engine and learner differ in them."""
    engine = EngineProcess(model, dtype)
    refusals: list[str] = []
    gaps: list[float] = []
    seconds: list[float] = []
    for number in range(publications):
        refusal, gap, took = engine.take(learner.publish())
        refusals += [refusal] if refusal is not None else []
        gaps += [gap] if gap is not None else []
        seconds.append(took)
        if (number + 1) % 25 == 0:
            print(f"{number + 1} honest publications, {len(refusals)} refused, largest gap {max(gaps):.3g}", flush=True)
        if refusal is not None:
            engine.close()
            engine = EngineProcess(model, dtype)
    engine.close()
    return {
        "publications": publications,
        "refused": refusals,
        "largest_gap": max(gaps),
        "median_largest_gap": statistics.median(gaps),
        "load_seconds": statistics.median(seconds),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--honest", type=int, default=300, help="honest publications")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/canary.json"))
    chosen = parser.parse_args(arguments)
    from launch.output.summary import package_versions

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        learner = Learner(chosen.model, chosen.dtype, Path(folder) / "run")
        result: dict[str, Any] = {"model": chosen.model, "dtype": chosen.dtype, "lr": 5e-7, "faults": {}}
        for fault in (*FAULTS, REPUBLISHED):
            attempts, reason = found_after(learner, fault, chosen.model, chosen.dtype)
            result["faults"][fault] = {"publications": attempts, "reason": reason}
            print(f"{fault}: {'not found' if attempts is None else attempts} {reason[:150]}", flush=True)
        result["honest"] = honest(learner, chosen.honest, chosen.model, chosen.dtype)
        learner.worker.close()
    record.write(chosen.output, result | {"machine": record.machine(), "versions": package_versions()})
    found = all(each["publications"] is not None for each in result["faults"].values())
    return 0 if found and not result["honest"]["refused"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
