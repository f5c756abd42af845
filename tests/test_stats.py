from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from selfedit.stats import best_of, bootstrap, jackknife, mean_and_error, paired_difference, sign_flip_chance, tail_chance, wilson


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


def test_intervals_of_rates() -> None:
    low, high = wilson(29, 40)
    assert (round(low, 3), round(high, 3)) == (0.572, 0.839)
    assert wilson(0, 8)[0] == 0.0 and wilson(8, 8)[1] == 1.0
    low, high = bootstrap([[1.0] * 5, [0.0] * 5] * 4)
    assert 0.1 < low < 0.35 and 0.65 < high < 0.9, "8 clusters, not 40 values"
    assert bootstrap([[1.0, 1.0]] * 3) == (1.0, 1.0)


def test_the_jackknife_of_a_mean_is_its_standard_error_and_of_a_ratio_the_ratio_of_sums() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    of_mean, plain = jackknife(values, lambda some: sum(some) / len(some)), mean_and_error(values)
    assert (of_mean.n, of_mean.mean, of_mean.se) == (4, plain.mean, pytest.approx(plain.se))
    assert of_mean.high - of_mean.mean == pytest.approx(3.1824 * plain.se, abs=1e-3)
    ratio = jackknife([(1.0, 2.0), (3.0, 4.0), (2.0, 4.0)], lambda some: sum(a for a, _ in some) / sum(b for _, b in some))
    assert ratio.mean == pytest.approx(0.6) and ratio.low < 0.6 < ratio.high
