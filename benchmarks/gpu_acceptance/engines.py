"""Parts of one engine: sampled tokens per second, and the memory that it gives back while it sleeps."""

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_acceptance.children import Child
from benchmarks.gpu_acceptance.learners import bring, engine_of, learner_of, random_prompts
from benchmarks.gpu_acceptance.parts import FailedError, Sample, Setup

SLEEP_TOKENS, SLEEP_PROMPTS = 16, 4


def generation(setup: Setup) -> Iterator[dict[str, Any]]:
    """Sample `requests` that start together, `rounds` times after a first one that is not counted.

    On a GPU once more with `generators.async_scheduling`, which has never run on one so far.
    """
    prompts = random_prompts(setup, setup.requests)
    for name, ahead in (("tokens_per_second", False), ("tokens_per_second_ahead", True))[: 1 + setup.cuda]:
        with engine_of(setup, eager=setup.eager, new_tokens=setup.new_tokens, ahead=ahead) as engine:
            engine.call("sample", prompts)
            rates = []
            for number in range(setup.rounds):
                samples, seconds = engine.call("sample", prompts, None, 1000 * number)
                tokens = sum(len(sample.tokens) for sample in samples)
                rates.append(tokens / seconds)
                yield {name: statistics.median(rates), "tokens": tokens, "requests": setup.requests}


def sleep(setup: Setup) -> Iterator[dict[str, Any]]:
    """Sleep at level 1, which keeps the weights in host memory, and 2, which needs them published again, and wake.

    The same requests with the same seeds must then get the same tokens with the same log-probs. Never run so far:
    written against vLLM 0.32's `LLMEngine.sleep` and `wake_up`.
    """
    prompts = random_prompts(setup, SLEEP_PROMPTS)
    with (
        engine_of(setup, eager=True, new_tokens=SLEEP_TOKENS, sleeps=True) as engine,
        learner_of(setup) as learner,
    ):
        manifest = learner.export(0)  # the weights of the files
        assert manifest is not None
        bring(learner, engine, manifest)
        before = engine.call("sample", prompts)[0]
        for level in (1, 2):
            seconds, freed = engine.call("sleep", level)
            awake = engine.call("wake")
            yield {f"freed_{level}": freed, f"sleep_{level}": seconds, f"wake_{level}": awake}
            if freed <= 0:
                raise FailedError(f"sleep at level {level} gave {freed} bytes back")
            if level == 2:
                bring(learner, engine, manifest)
            yield {f"difference_{level}": _same(engine, prompts, before, level)}


def _same(engine: Child, prompts: list[tuple[int, ...]], before: list[Sample], level: int) -> float:
    after = engine.call("sample", prompts)[0]
    if [sample.tokens for sample in after] != [sample.tokens for sample in before]:
        raise FailedError(f"after sleep at level {level} the same seeds sample other tokens")
    pairs = [pair for a, b in zip(after, before, strict=True) for pair in zip(a.logprobs, b.logprobs, strict=True)]
    difference = max(abs(a - b) for a, b in pairs)
    if difference > 0.0:
        raise FailedError(f"after sleep at level {level} log-probs differ by {difference:.3g} nats")
    return difference
