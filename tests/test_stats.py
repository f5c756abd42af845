from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from selfedit.stats import best_of, mean_and_error, paired_difference, sign_flip_chance, tail_chance


def test_means_and_differences_against_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, 12), rng.normal(0, 1, 12)
    m = mean_and_error(list(a))
    assert m.n == 12 and m.mean == pytest.approx(a.mean()) and m.se == pytest.approx(scipy_stats.sem(a))
    d = paired_difference(list(a), list(b))
    interval = scipy_stats.ttest_rel(a, b).confidence_interval()
    assert (d.low, d.high) == pytest.approx((interval.low, interval.high))
    reference = scipy_stats.permutation_test((a - b,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert d.p == pytest.approx(reference, abs=1e-9)


def test_few_values() -> None:
    assert math.isnan(mean_and_error([]).mean)
    assert mean_and_error([2.0]).mean == 2.0 and math.isnan(mean_and_error([2.0]).se)
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])


def test_chance_of_a_gain() -> None:
    assert sign_flip_chance([1, 1, 1]) == pytest.approx(1 / 8)
    assert sign_flip_chance([1, 1, 0, 0]) == pytest.approx(1 / 4)
    assert sign_flip_chance([1, -1]) == pytest.approx(3 / 4)
    assert sign_flip_chance([0, 0]) == 1.0
    assert sign_flip_chance([1.0] * 30) < 1e-3
    assert tail_chance(2, 3, 0.1) == pytest.approx(3 * 0.01 * 0.9 + 0.001)
    assert tail_chance(1.5, 3, 0.1) == tail_chance(2, 3, 0.1) and tail_chance(0, 3, 0.1) == 1.0
    assert best_of(0.25, 1) == 0.25 and best_of(0.25, 4) == pytest.approx(1 - 0.75**4)
