"""Part: honest publications in bfloat16 at a usual learning rate, of which the canary must refuse none."""

import time
from collections.abc import Iterator
from typing import Any

from actors.errors import WeightMismatchError
from benchmarks.gpu_acceptance.learners import TINY_LR, bring, engine_of, learner_of, random_pairs
from benchmarks.gpu_acceptance.parts import FailedError, Setup

MOST_REFUSALS = 3
"""After each the engine has to start again."""
TIME_SHARE = 0.75
ROW_TOKENS, PAIRS = 64, 2


def canary(setup: Setup) -> Iterator[dict[str, Any]]:
    """Update, publish and load up to `publications` times, or until three quarters of the time are over."""
    until = time.monotonic() + TIME_SHARE * setup.seconds
    version, refusals = 0, list[str]()

    def goes_on() -> bool:
        return version < setup.publications and len(refusals) < MOST_REFUSALS and time.monotonic() < until

    with learner_of(setup) as learner:
        while goes_on():
            known = len(refusals)
            with engine_of(setup) as engine:
                while goes_on() and len(refusals) == known:
                    learner.update(random_pairs(setup, PAIRS, version, ROW_TOKENS))
                    manifest = learner.export(version)
                    assert manifest is not None
                    try:
                        bring(learner, engine, manifest)
                    except WeightMismatchError as refusal:
                        refusals.append(str(refusal))
                    learner.retire(version)
                    version += 1
                    yield {"publications": version, "wanted": setup.publications, "refusals": len(refusals)}
    yield {"lr": TINY_LR, "reasons": refusals}
    if refusals:
        raise FailedError(f"{len(refusals)} of {version} honest publications were refused: {refusals[0]}")
