"""Low-rank factors: the errors that they state are those that they make, and none is smaller."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt.passes import low_rank
from pwopt.passes.low_rank import Basis


def rows(count: int, channels: int, seed: int = 0) -> np.ndarray:
    """Correlated rows of unequal variance and a mean."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, channels)) @ rng.standard_normal((channels, channels))
    return np.asarray(mixed * np.geomspace(1, 0.01, channels) + rng.uniform(-1, 1, channels))


def covariance(x: np.ndarray) -> np.ndarray:
    centered = x - x.mean(axis=0)
    return np.asarray(centered.T @ centered / len(x))


def kernel(filters: int, channels: int, taps: int, rank: int | None = None) -> np.ndarray:
    """Random weights that look at a subspace of ``rank`` dimensions of their inputs."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((filters, channels, taps)) * rng.uniform(0.1, 2, (filters, 1, 1))
    if rank is None:
        return w
    seen = np.linalg.qr(rng.standard_normal((channels, rank)))[0]
    return np.asarray(np.einsum("oct,cd->odt", w, seen @ seen.T))


def projection(basis: Basis, rank: int) -> np.ndarray:
    return np.asarray(basis.expand[:, :rank] @ basis.reduce[:rank])


def missing(kernel: np.ndarray, projection: np.ndarray, x: np.ndarray) -> float:
    """Share of what single taps answer to pixels that a projection of the pixels takes away."""
    taps = kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1])
    lost = x @ (np.eye(len(projection)) - projection).T @ taps.T
    return float(np.sum(lost**2) / np.sum((x @ taps.T) ** 2))


def test_error_of_an_output_basis_is_that_of_projected_rows() -> None:
    y = rows(500, 12)
    basis = low_rank.output_basis(covariance(y))
    centered = y - y.mean(axis=0)
    for rank in range(13):
        kept = centered @ projection(basis, rank).T
        share = np.sum((centered - kept) ** 2) / np.sum(centered**2)
        assert basis.error[rank] == pytest.approx(share, abs=1e-12)


def test_errors_fall_from_all_to_nothing() -> None:
    x = rows(200, 9)
    for basis in (
        low_rank.output_basis(covariance(x)),
        low_rank.input_basis(x.T @ x / len(x), kernel(16, 9, 4)),
    ):
        assert basis.error[0] == 1.0
        assert basis.error[-1] == 0.0
        assert np.all(np.diff(basis.error) <= 0)
        np.testing.assert_allclose(projection(basis, 9), np.eye(9), atol=1e-6)


def test_error_of_an_input_basis_is_that_of_projected_inputs() -> None:
    x, w = rows(400, 10), kernel(24, 10, 9)
    basis = low_rank.input_basis(x.T @ x / len(x), w)
    for rank in range(11):
        found = missing(w, projection(basis, rank), x)
        assert basis.error[rank] == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_no_projection_of_inputs_loses_less(rank: int) -> None:
    x, w = rows(400, 10), kernel(24, 10, 9)
    best = missing(w, projection(low_rank.input_basis(x.T @ x / len(x), w), rank), x)
    plain = projection(low_rank.output_basis(x.T @ x / len(x)), rank)
    assert best < missing(w, plain, x)
    rng = np.random.default_rng(rank)
    for _ in range(50):
        some = np.linalg.qr(rng.standard_normal((10, rank)))[0]
        assert best < missing(w, some @ some.T, x)


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_inputs_that_a_kernel_does_not_look_at_are_found(rank: int) -> None:
    x, w = rows(300, 8), kernel(20, 8, 9, rank)
    basis = low_rank.input_basis(x.T @ x / len(x), w)
    assert basis.error[rank] < 1e-12 < basis.error[rank - 1]
    np.testing.assert_allclose(np.einsum("oct,cd->odt", w, projection(basis, rank)), w, atol=1e-6)


def test_zero_weights_and_zero_responses_give_finite_bases() -> None:
    for basis in (
        low_rank.output_basis(np.zeros((4, 4))),
        low_rank.input_basis(np.eye(4), np.zeros((8, 4, 9))),
    ):
        assert all(np.isfinite(a).all() for a in (basis.reduce, basis.expand, basis.error))


def test_expansion_of_many_rows_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(1)
    inside = rng.standard_normal((20000, 6)) + 3.0
    wanted = inside @ rng.standard_normal((6, 15)) + rng.standard_normal((20000, 15)) - 2.0
    found = low_rank.fit(inside, wanted, np.zeros((15, 6)))
    solved = np.linalg.lstsq(np.c_[inside, np.ones(20000)], wanted, rcond=None)[0]
    np.testing.assert_allclose(found.weights, solved[:-1].T, atol=2e-3)
    np.testing.assert_allclose(found.bias, solved[-1], atol=2e-2)


def test_expansion_of_few_rows_stays_near_the_prior() -> None:
    rng = np.random.default_rng(2)
    prior = rng.standard_normal((15, 32))
    wanted = rng.standard_normal((400, 15))
    distances = []
    for count in (1, 4, 16, 400):
        inside = np.random.default_rng(3).standard_normal((400, 32))[:count]
        found = low_rank.fit(inside, wanted[:count], prior)
        distances.append(np.linalg.norm(found.weights - prior) / np.linalg.norm(prior))
        np.testing.assert_allclose(
            found(inside).mean(axis=0), wanted[:count].mean(axis=0), atol=1e-9
        )
    assert distances[0] == pytest.approx(0.0, abs=1e-12)
    assert distances == sorted(distances)
    assert distances[-1] > 0.5


def test_expansion_of_dead_channels_is_the_prior() -> None:
    prior = np.arange(6.0).reshape(3, 2)
    found = low_rank.fit(np.zeros((10, 2)), np.ones((10, 3)), prior)
    np.testing.assert_allclose(found.weights, prior)
    np.testing.assert_allclose(found.bias, np.ones(3))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_other_map_of_a_rank_is_nearer(rank: int) -> None:
    rng = np.random.default_rng(4)
    z = rng.standard_normal((5000, 8)) @ np.diag(np.geomspace(1, 1e-2, 8))
    wanted = z @ rng.standard_normal((8, 12)) + 0.1 * rng.standard_normal((5000, 12)) + 1.0
    found = low_rank.fit(z, wanted, np.zeros((12, 8)), rank=rank)
    assert found.directions is not None
    assert np.linalg.matrix_rank(found.weights) == found.directions.shape[1] == rank
    np.testing.assert_allclose(found.directions.T @ found.directions, np.eye(rank), atol=1e-12)
    full = np.linalg.lstsq(z - z.mean(0), wanted - wanted.mean(0), rcond=None)[0]
    values = np.linalg.svd((z - z.mean(0)) @ full, compute_uv=False)
    out_of_reach = np.sum((wanted - wanted.mean(0) - (z - z.mean(0)) @ full) ** 2)
    best = out_of_reach + np.sum(values[rank:] ** 2)  # Eckart, Young
    assert np.sum((found(z) - wanted) ** 2) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (0.0, 0.7), (-np.inf, 0.2)])
def test_what_a_clip_hides_is_left_to_the_fit(bounds: tuple[float, float]) -> None:
    rng = np.random.default_rng(5)
    z = rng.standard_normal((4000, 6))
    prior = rng.standard_normal((9, 6))
    wanted = z @ prior.T + 0.3 * np.sin(5 * z) @ rng.standard_normal((6, 9)) - 0.4
    bias = wanted.mean(axis=0)

    def error(found: low_rank.Fit) -> float:
        return float(np.sum((np.clip(found(z), *bounds) - np.clip(wanted, *bounds)) ** 2))

    plain = low_rank.fit(z, wanted, prior, bias, rank=3)
    clipped = low_rank.fit(z, wanted, prior, bias, rank=3, bounds=bounds)
    assert error(clipped) < 0.96 * error(plain)
    assert np.linalg.matrix_rank(clipped.weights) == 3


def test_shrinking_keeps_the_trace_and_fades_with_rows() -> None:
    moment, prior = covariance(rows(50, 20)), np.eye(20)
    far = [np.linalg.norm(low_rank.shrunk(moment, prior, n) - moment) for n in (1, 10, 100, 10**6)]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 1e-4
    np.testing.assert_allclose(low_rank.shrunk(moment, prior, 2), np.trace(moment) / 20 * prior)
    for count in (1, 5, 500):
        made = low_rank.shrunk(moment, prior, count)
        assert np.trace(made) == pytest.approx(np.trace(moment))


def test_relative_error_is_over_the_variance() -> None:
    wanted = np.array([[1.0, 5.0], [3.0, 5.0]])
    assert low_rank.relative_error(wanted, wanted) == 0.0
    assert low_rank.relative_error(np.array([[2.0, 5.0], [2.0, 5.0]]), wanted) == 1.0
    assert low_rank.relative_error(wanted + np.array([0.0, 1.0]), wanted) == 1.0
    assert low_rank.relative_error(np.ones((2, 2)), np.zeros((2, 2))) == 4.0
