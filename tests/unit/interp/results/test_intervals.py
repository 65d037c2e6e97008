"""Bootstrap intervals over rules against loops written out."""

import numpy as np
import pytest

from interp.results.intervals import (
    bootstrap_mean,
    interval_of,
    mean_interval,
    mean_of_known,
    percentile_interval,
    resample_counts,
    resampled_means,
)


def with_holes(shape: tuple[int, ...], share: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    values[rng.random(shape) < share] = np.nan
    return values


def test_resample_counts_are_draws_with_replacement() -> None:
    counts = resample_counts(7, 4000, seed=3)
    assert counts.shape == (4000, 7)
    np.testing.assert_array_equal(counts.sum(1), 7)
    # Binomial(7, 1/7): mean 1, variance 6/7.
    np.testing.assert_allclose(counts.mean(0), 1, atol=4 * (6 / 7 / 4000) ** 0.5)
    np.testing.assert_allclose(counts.var(0), 6 / 7, rtol=0.15)
    np.testing.assert_array_equal(counts, resample_counts(7, 4000, seed=3))
    assert not np.array_equal(counts, resample_counts(7, 4000, seed=4))


def slow_bootstrap(
    values: np.ndarray, draws: int, confidence: float, seed: int
) -> tuple[np.ndarray, ...]:
    """Mean and interval of one column, resample by resample, rule by rule."""
    known = values[~np.isnan(values)]
    if len(known) < 2:
        mean = known.mean() if len(known) else np.nan
        return np.array(mean), np.array(np.nan), np.array(np.nan)
    means = []
    for counts in resample_counts(len(values), draws, seed):
        drawn = [
            v
            for v, count in zip(values, counts, strict=True)
            for _ in range(int(count))
            if not np.isnan(v)
        ]
        if drawn:
            means.append(sum(drawn) / len(drawn))
    tail = (1 - confidence) / 2
    return known.mean(), *np.quantile(means, [tail, 1 - tail])


@pytest.mark.parametrize("shape", [(6, 4), (2, 3), (1, 3), (5, 1), (4, 2, 3)])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_bootstrap_mean_equals_a_loop(shape: tuple[int, ...], share: float) -> None:
    values = with_holes(shape, share, seed=2)
    got = bootstrap_mean(values, draws=60, confidence=0.9, seed=5)
    for part in got:
        assert part.shape == shape[1:]
    for place in np.ndindex(shape[1:]):
        expected = slow_bootstrap(values[(slice(None), *place)], 60, 0.9, 5)
        np.testing.assert_allclose([part[place] for part in got], expected, rtol=1e-12)


def test_bootstrap_mean_of_nothing_is_nan() -> None:
    values = np.array([[np.nan, 1.0, 2.0], [np.nan, np.nan, 4.0]])
    mean, lower, upper = bootstrap_mean(values, draws=50, confidence=0.95, seed=0)
    np.testing.assert_array_equal(mean, [np.nan, 1.0, 3.0])
    np.testing.assert_array_equal(lower, [np.nan, np.nan, 2.0])
    np.testing.assert_array_equal(upper, [np.nan, np.nan, 4.0])


def test_bootstrap_draws_are_paired() -> None:
    # The same draws for every entry: what is always larger by 5 has bounds larger by exactly 5.
    values = with_holes((8, 1), 0.0)
    _, lower, upper = bootstrap_mean(
        np.concatenate([values, values + 5], axis=1), draws=40, confidence=0.9, seed=1
    )
    np.testing.assert_allclose(lower[1] - lower[0], 5, rtol=1e-12)
    np.testing.assert_allclose(upper[1] - upper[0], 5, rtol=1e-12)


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 2.0, size=(40, 1000))
    _, lower, upper = bootstrap_mean(values, draws=400, confidence=0.9, seed=1)
    covered = ((lower < 1) & (upper > 1)).mean()
    assert 0.84 < covered < 0.93  # percentile intervals of 40 values are a little short


def test_every_interval_of_a_mean_is_the_same_one() -> None:
    values = with_holes((9,), 0.0)
    means = [np.repeat(values, n.astype(int)).mean() for n in resample_counts(9, 300, 4)]
    ends = np.percentile(means, [5, 95])
    np.testing.assert_allclose(resampled_means(values, draws=300, seed=4), means, rtol=1e-12)
    options = {"draws": 300, "confidence": 0.9, "seed": 4}
    np.testing.assert_allclose(mean_interval(values, **options), ends, rtol=1e-12)
    np.testing.assert_allclose(bootstrap_mean(values, **options)[1:], ends, rtol=1e-12)
    np.testing.assert_allclose(interval_of(np.array(means), 0.9), ends, rtol=1e-12)
    assert np.isnan(mean_interval(values[:1], **options)).all()


def test_percentiles_leave_out_what_is_missing() -> None:
    draws = np.array([[1.0, np.nan, np.nan], [2.0, 5.0, np.nan], [3.0, np.nan, np.nan]])
    lower, upper = percentile_interval(draws, 0.5)
    np.testing.assert_array_equal(lower, [1.5, 5.0, np.nan])
    np.testing.assert_array_equal(upper, [2.5, 5.0, np.nan])
    np.testing.assert_array_equal(mean_of_known(draws, 0), [2.0, 5.0, np.nan])
