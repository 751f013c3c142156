"""Fréchet and kernel distances against closed forms and independent implementations."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from rvqlm.metrics import distances
from rvqlm.metrics.distances import frechet_distance, kernel_distance, moments


def normal(number: int, mean, cov, seed: int = 0) -> np.ndarray:
    """Vectors with exactly this mean and covariance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((number, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T
    return x @ np.linalg.cholesky(np.asarray(cov, float)).T + mean


def test_frechet_closed_forms():
    # along axes: |m|^2 + sum (s_a - s_b)^2
    a = normal(500, [0, 0, 1], np.diag([1, 4, 9]))
    b = normal(300, [3, 0, 5], np.diag([4, 4, 1]), seed=1)
    assert frechet_distance(a, b) == pytest.approx(9 + 16 + 1 + 0 + 4)
    # one dimension
    one, two = normal(50, [0], [[1]]), normal(50, [2], [[9]], seed=1)
    assert frechet_distance(one, two) == pytest.approx(4 + 4)


def test_frechet_against_the_square_root_of_a_matrix():
    rng = np.random.default_rng(0)
    for dim in (2, 10):
        a, b = (rng.standard_normal((200, dim)) @ rng.standard_normal((dim, dim)) for _ in "ab")
        (m, c), (n, d) = moments(a), moments(b)
        root = scipy.linalg.sqrtm(c @ d).real
        expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * root)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_of_fewer_vectors_than_dimensions():
    a, b = (np.random.default_rng(s).standard_normal((5, 40)) for s in (0, 1))
    found = frechet_distance(a, b)
    assert np.isfinite(found) and found > 0


def naive_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, by its definition."""
    d = cdist(x, x)
    width = np.median(d[np.triu_indices(len(x), 1)])

    def k(a, b):
        return np.exp(-(cdist(a, b) ** 2) / (2 * width**2))

    xx, yy = ((k(v, v).sum() - len(v)) / (len(v) * (len(v) - 1)) for v in (x, y))
    return 100 * (xx + yy - 2 * k(x, y).mean())


def test_kernel_distance_against_its_definition(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((90, 4)) + 50, rng.standard_normal((70, 4)) * 1.5 + 50.5
    expected = naive_kernel_distance(x, y)
    assert expected > 1
    for block in (1000, 17):
        monkeypatch.setattr(distances, "_BLOCK", block)
        assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_closed_form():
    """Of two normal distributions of one width: E k = (s^2 / (s^2 + 2))^(D/2) exp(-m^2 / ...)."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4000, 1)), rng.standard_normal((4000, 1)) + 2.0
    width2 = np.median(np.abs(x - x.T)[np.triu_indices(4000, 1)]) ** 2
    factor = np.sqrt(width2 / (width2 + 2))
    expected = 100 * 2 * factor * (1 - np.exp(-4 / (2 * (width2 + 2))))
    assert kernel_distance(x, y) == pytest.approx(expected, rel=0.03)


def test_it_has_no_bias():
    rng = np.random.default_rng(0)
    found = [kernel_distance(*rng.standard_normal((2, 20, 3))) for _ in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)
    grown = [frechet_distance(*rng.standard_normal((2, 20, 3))) for _ in range(20)]
    assert np.mean(grown) > 0.2  # which Fréchet's has


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_equal_sets_and_order(distance):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 5))
    x[100:140] = x[0]  # as the frames of digital silence
    assert distance(x, x) == 0
    assert distance(x, x[rng.permutation(300)]) == pytest.approx(0, abs=1e-9)
    near, far = (x[:200] + shift + rng.standard_normal((200, 5)) for shift in (0.5, 3.0))
    assert 0 < distance(x, near) < distance(x, far)
    with pytest.raises(ValueError):
        distance(x, x[:1])


def test_of_many_vectors_some_are_compared(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((600, 2)), rng.standard_normal((500, 2)) + 1
    whole = kernel_distance(x, y)
    monkeypatch.setattr(distances, "MOST_VECTORS", 300)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=0.3) and kernel_distance(x, x) == 0
