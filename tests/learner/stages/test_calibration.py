"""Calibration by hand-made numbers."""

import math

import numpy as np
import pytest

from actors.world import sigmoid
from learner.stages import preference_card as calibration


def logit(p):
    return np.log(p) - np.log1p(-np.asarray(p))


def test_ece_by_hand():
    """Confidences .9 .9 .6 .6 in two bins of [1/2, 1]: accuracies 1/2 and 3/4, each bin half of the pairs.

    ECE = |.9 - .5| / 2 + |.6 - .75| / 2 = .275. The second pair of each is told the other way round: it prefers the
    second response, and a label of 1/2 is half right.
    """
    z = logit(np.array([0.9, 0.1, 0.6, 0.4]))
    p = np.array([1.0, 1.0, 1.0, 0.5])
    assert calibration.expected_calibration_error(z, p, bins=2) == pytest.approx(0.275)


def test_opposite_errors_in_one_bin_cancel_and_in_two_do_not():
    z, p = logit(np.array([0.7, 0.75])), np.array([0.8, 0.65])
    assert calibration.expected_calibration_error(z, p, bins=1) == pytest.approx(0.0)
    assert calibration.expected_calibration_error(z, p, bins=15) == pytest.approx(0.1)


def test_certainty_falls_into_the_last_bin():
    assert calibration.expected_calibration_error(np.array([800.0]), np.array([0.0])) == pytest.approx(1.0)


def test_the_temperature_of_logits_that_are_three_times_too_large_is_three():
    z = np.random.default_rng(0).normal(size=500)
    assert calibration.fit_temperature(3.0 * z, sigmoid(z)) == pytest.approx(3.0, rel=1e-9)


def test_the_temperature_is_the_best_of_a_grid():
    rng = np.random.default_rng(1)
    z = 4.0 * rng.normal(size=300)
    p = (rng.random(300) < sigmoid(0.4 * z)).astype(float)
    best = calibration.fit_temperature(z, p)
    losses = [calibration.negative_log_likelihood(z / t, p) for t in best * np.geomspace(0.5, 2.0, 41)]
    assert np.argmin(losses) == 20


def test_a_temperature_stays_within_bounds_where_none_is_best():
    """Logits that are never wrong are never too large, those of noise never too small."""
    assert calibration.fit_temperature(np.array([1.0, -2.0]), np.array([1.0, 0.0])) == pytest.approx(0.01)
    assert calibration.fit_temperature(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(100.0)
    assert calibration.fit_temperature(np.zeros(2), np.array([1.0, 0.0])) == 1.0


def test_the_slope_of_one_feature_by_hand():
    """x = +-2, won with probability 3/4 by the positive one: sigmoid(2 a) = 3/4, a = log(3) / 2."""
    x, p = np.array([2.0, -2.0, 2.0]), np.array([0.75, 0.25, 0.75])
    assert calibration.fit_slope(x, p) == pytest.approx(math.log(3.0) / 2.0)
    assert calibration.fit_slope(-x, p) == pytest.approx(-math.log(3.0) / 2.0)
    assert calibration.fit_slope(np.zeros(2), np.array([1.0, 0.0])) == 0.0


def test_negative_log_likelihood_and_accuracy_by_hand():
    z, p = np.array([0.0, math.log(3.0), -1.0, 2.0]), np.array([1.0, 0.5, 0.0, 0.25])
    by_hand = [math.log(2.0), -0.5 * math.log(0.75 * 0.25), math.log1p(math.exp(-1.0)), None]
    by_hand[3] = 0.25 * math.log1p(math.exp(-2.0)) + 0.75 * math.log1p(math.exp(2.0))
    assert calibration.negative_log_likelihood(z, p) == pytest.approx(np.mean(by_hand))
    assert calibration.accuracy(z, p) == pytest.approx((0.5 + 0.5 + 1.0 + 0.0) / 4)


def test_curl_by_hand():
    """A circle with curl 1 + 2 + 3, the same the other way round, and the order of rewards 2, 1, 0, without curl."""
    circle = np.array([[0.0, 1.0, -3.0], [-1.0, 0.0, 2.0], [3.0, -2.0, 0.0]])
    order = np.subtract.outer([2.0, 1.0, 0.0], [2.0, 1.0, 0.0])
    assert calibration.curl(np.stack([circle, -circle, order])) == (pytest.approx(4.0), pytest.approx(2 / 3))


@pytest.mark.parametrize("n", [200, 2000])
@pytest.mark.parametrize("soft", [False, True])
def test_the_noise_beside_the_calibration_error_is_that_of_a_calibrated_model(n, soft):
    """200 calibrated pairs with hard labels read .08, without a word that noise does that."""
    rng = np.random.default_rng(0)
    errors, floors = [], []
    for _ in range(200):
        z = rng.normal(size=n)
        p = 1 / (1 + np.exp(-z))
        labels = rng.beta(4 * p, 4 * (1 - p)) if soft else (rng.random(n) < p).astype(float)
        errors.append(calibration.expected_calibration_error(z, labels))
        floors.append(calibration.calibration_noise(z, labels))
    assert np.mean(floors) == pytest.approx(np.mean(errors), rel=0.06)
    if (n, soft) == (200, False):
        assert np.mean(errors) == pytest.approx(0.08, abs=0.015)


def test_an_overconfident_model_stands_out_of_the_noise():
    rng = np.random.default_rng(1)
    z = rng.normal(size=2000)
    labels = (rng.random(2000) < 1 / (1 + np.exp(-z))).astype(float)
    assert calibration.expected_calibration_error(3 * z, labels) > 4 * calibration.calibration_noise(3 * z, labels)
