"""What an engine's log-probs must agree with, and when they must have moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.errors import UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig
from actors.generation.proof.canary import CanaryCheck
from actors.records import Canary, Manifest, TensorRecord

TOKENS = tuple(range(3, 13))
ANSWER = (-1.0,) * 8


def manifest(version: int, bits: str, canary: tuple[float, ...] = ANSWER, fresh: Canary | None = None) -> Manifest:
    """Of two matrices with these fingerprints and a norm that never changes."""
    tensors = (
        TensorRecord("up", (4, 4), "bfloat16", f"up {bits}"),
        TensorRecord("down", (4, 4), "bfloat16", f"down {bits}"),
        TensorRecord("norm", (4,), "bfloat16", "norm"),
    )
    return Manifest(version, tensors, Canary(TOKENS, canary), "shm", fresh=fresh)


def check_of(dtype: str, **settings: Any) -> CanaryCheck:
    return CanaryCheck(GeneratorConfig.model_validate({"dtype": dtype, **settings}))


def scores(*offsets: float) -> list[float]:
    """The engine's log-probs, off by these from the first token on."""
    return [-1.0 + offset for offset in offsets] + [-1.0] * (len(ANSWER) - len(offsets))


def test_a_mean_difference_is_refused_where_one_unlikely_token_is_not():
    """Of 8 tokens a mean of 0.2 (1 + 1 / sqrt(8)) = 0.2707 is allowed, of 100 one of 0.22."""
    check = check_of("bfloat16")
    check.check(manifest(1, "a"), scores(2.1))  # a mean of 0.2625
    with pytest.raises(WeightMismatchError, match=r"differ by 0\.28 nats .* 0\.28 in the mean of its 8 tokens, 0\.271"):
        check.check(manifest(2, "b"), scores(*[0.28] * 8))
    long = Canary((3,) * 101, (-1.0,) * 100)
    check.check(replace(manifest(2, "b"), canary=long), [-0.785] * 100)
    with pytest.raises(WeightMismatchError, match=r"0\.225 in the mean of its 100 tokens, 0\.22 are allowed"):
        check.check(replace(manifest(2, "b"), canary=long), [-0.775] * 100)
    with pytest.raises(WeightMismatchError, match="differ by 6 nats on the canary, 5 are allowed"):
        check.check(replace(manifest(2, "b"), canary=long), [5.0] + [-1.0] * 99)


def test_a_rollout_of_few_tokens_under_a_policy_that_moved_far_is_not_refused():
    """A run of RLOO on samples 16 versions old was ended by this one, of 8 tokens, at its 15th version."""
    check_of("bfloat16").check(manifest(15, "a"), scores(0.3658, *[0.1261] * 7))


def test_in_float32_one_token_above_the_tolerance_is_refused():
    check = check_of("float32")
    check.check(manifest(1, "a"), scores(0.0009))
    with pytest.raises(WeightMismatchError, match=r"differ by 0\.0011 nats on the canary, 0\.001 are allowed"):
        check.check(manifest(2, "b"), scores(0.0011))


def test_no_number_is_refused():
    with pytest.raises(WeightMismatchError, match="differ by nan nats"):
        check_of("bfloat16").check(manifest(1, "a"), scores(float("nan")))


def test_a_rollout_is_compared_instead_of_an_answer_that_the_policy_left_behind_and_is_the_gap():
    check = check_of("bfloat16")
    assert check.gap is None
    fresh = Canary(TOKENS, (-0.5,) * 4)
    check.check(manifest(1, "a", fresh=fresh), [-0.5, -0.25, -0.5, -0.5])
    assert check.gap == 0.25
    with pytest.raises(WeightMismatchError, match="in the mean of its 4 tokens"):
        check.check(manifest(2, "b", fresh=fresh), [-1.5] * 4)


def test_tensors_that_stay_while_the_learner_moves_are_refused_before_they_are_loaded():
    check = check_of("bfloat16")
    check.check(manifest(1, "a"), scores())
    moved = (-1.02, *ANSWER[1:])
    with pytest.raises(WeightMismatchError, match=r"version 2 holds the tensors of version 1 .* moved by 0\.02 nats"):
        check.check_before(manifest(2, "a", moved))
    check.check_before(manifest(2, "a"))  # an update that was skipped
    check.check_before(manifest(2, "b", moved))


def test_a_canary_with_other_tokens_is_not_compared_with_the_one_before():
    check = check_of("bfloat16")
    check.check(manifest(1, "a"), scores())
    other = replace(manifest(2, "a"), canary=Canary(TOKENS[::-1], (-2.0,) * 8))
    check.check_before(other)
    check.check(other, [-2.0] * 8)


def test_only_matrices_count_as_changed():
    check = check_of("bfloat16")
    assert check.changed(manifest(1, "a")) == 0.0
    check.check(manifest(1, "a"), scores())
    assert check.changed(manifest(2, "a")) == 0.0
    assert check.changed(manifest(2, "b")) == 1.0
    half = manifest(2, "b")
    assert check.changed(replace(half, tensors=(half.tensors[0], *manifest(1, "a").tensors[1:]))) == 0.5


@pytest.mark.parametrize(("length", "answer"), [(64, 8), (8, 8), (8, 0)])
def test_a_canary_that_cannot_be_scored_is_refused_with_its_setting(length: int, answer: int):
    canary = Canary((3,) * length, (-1.0,) * answer)
    with pytest.raises(UsageError, match=rf"a canary of {length} tokens, {answer} of them.*publication\.canary_tokens"):
        check_of("float32", max_model_len=64).check_before(Manifest(1, (), canary, "shm"))
