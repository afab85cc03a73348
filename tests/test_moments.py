"""Laws of the statistics of columns, and of the maps that are made of them."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._views import View
from sklearn_fpe.nn import Affine

seeds = st.integers(0, 2**32 - 1)
exponents = st.integers(-300, 300)


def moments_of(X, weights=None, pieces=1):
    """Return the moments of rows that are seen in some pieces."""
    weights = np.ones(len(X)) if weights is None else weights
    moments = Moments(X.shape[1])
    for rows in np.array_split(np.arange(len(X)), pieces):
        moments.update(View(X, rows), weights[rows])
    return moments


def exact_moments(column, weights):
    """Return mean and deviation by rational numbers, as floats."""
    values = [Fraction(float(v)) for v in column]
    weights = [Fraction(float(w)) for w in weights]
    total = sum(weights)
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    m2 = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True)) / total
    # The square root by integers, because the variance may not fit a float.
    shift = 2 ** (2 * 2200)
    root = Fraction(int_sqrt(int(m2 * shift)), 2**2200)
    return float(mean), float(root)


def int_sqrt(n):
    root = 1 << (n.bit_length() // 2 + 1)
    while (better := (root + n // root) // 2 if root else 0) < root:
        root = better
    return root


@st.composite
def columns(draw):
    """Draw rows whose columns have any location and any spread that float64 holds."""
    rng = np.random.default_rng(draw(seeds))
    n_rows, n_columns = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    X = rng.normal(size=(n_rows, n_columns))
    for j in range(n_columns):
        spread = 10.0 ** draw(exponents)
        offset = 10.0 ** draw(st.integers(0, 13)) * draw(st.sampled_from([-1, 0, 1]))
        with np.errstate(over="ignore"):
            X[:, j] = (X[:, j] + offset) * spread
        X[:, j] = np.nan_to_num(X[:, j], posinf=1e300, neginf=-1e300)
    return X, rng.uniform(0.1, 10, n_rows)


@given(columns(), st.integers(1, 5))
def test_moments_are_those_of_rational_numbers(data, pieces):
    X, weights = data
    moments = moments_of(X, weights, min(pieces, len(X)))
    affine = moments.affine()
    for j, column in enumerate(X.T):
        mean, deviation = exact_moments(column, weights)
        assert_allclose(affine.mean[j], mean, rtol=1e-12)
        if not moments.constant()[j]:
            # A difference to the first row is exact to its last bit only.
            lost = 4 * np.finfo(float).eps * abs(mean) / deviation
            assert_allclose(affine.scale[j], deviation, rtol=1e-12 + lost)
        else:
            assert deviation <= 20 * np.finfo(float).eps * abs(mean)
            assert affine.scale[j] == 1


@given(columns(), st.integers(2, 12), seeds)
def test_pieces_in_any_order_give_what_all_rows_at_once_give(data, pieces, seed):
    X, weights = data
    at_once = moments_of(X, weights)
    order = np.random.default_rng(seed).permutation(len(X))
    merged = moments_of(X[order], weights[order], min(pieces, len(X)))
    assert_allclose(merged.weight, at_once.weight, rtol=1e-12)
    assert_allclose(merged.affine().mean, at_once.affine().mean, rtol=1e-12)
    varies = ~(at_once.constant() | merged.constant())
    deviation, other = (m.affine().scale[varies] for m in (merged, at_once))
    mean = np.abs(at_once.affine().mean[varies])
    lost = 8 * np.finfo(float).eps * mean / other
    assert (np.abs(deviation / other - 1) <= 1e-12 + lost).all()


@pytest.mark.parametrize("first", [1e-300, 1e-120, 1.0, 1e120, 1e300])
@pytest.mark.parametrize("second", [1e-300, 1e-120, 1.0, 1e120, 1e300])
def test_the_spread_may_grow_or_shrink_from_piece_to_piece(first, second):
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(9, 1)) * s for s in (first, second)])
    at_once, merged = moments_of(X).affine(), moments_of(X, pieces=18).affine()
    assert_allclose(merged.mean, at_once.mean, rtol=1e-12)
    assert_allclose(merged.scale, at_once.scale, rtol=1e-12)
    _, deviation = exact_moments(X[:, 0], np.ones(18))
    assert_allclose(at_once.scale, deviation, rtol=1e-12)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(1, 30),
    st.integers(1, 4),
    seeds,
)
def test_a_constant_column_is_exact(value, n_rows, pieces, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 10, n_rows)
    X = np.full((n_rows, 1), value)
    moments = moments_of(X, weights, min(pieces, n_rows))
    assert moments.exactly_constant().all()
    assert moments.constant().all()
    affine = moments.affine()
    assert_array_equal(affine.mean, [value])
    assert_array_equal(affine.scale, [1.0])


@pytest.mark.parametrize("size", [5e-324, 1e-310, 2.3e-308, 1.7e308])
@pytest.mark.parametrize("pieces", [1, 4])
def test_the_smallest_and_largest_numbers_have_moments(size, pieces):
    moments = moments_of(np.array([[0.0], [size], [0.0], [size]]), pieces=pieces)
    assert not moments.exactly_constant().any()
    affine = moments.affine()
    assert np.isfinite([affine.mean, affine.scale]).all()
    assert_allclose(affine.mean, size / 2, rtol=1e-12)


def test_a_difference_in_the_last_bits_is_constant_but_not_exactly():
    X = np.array([[1.0], [np.nextafter(1.0, 2)]])
    moments = moments_of(X)
    assert moments.constant().all()
    assert not moments.exactly_constant().any()


def test_standardised_rows_have_mean_0_and_deviation_1():
    rng = np.random.default_rng(0)
    scales = 10.0 ** np.array([-300, -100, -5, 0, 5, 100, 300])
    X = rng.normal(size=(50, 7)) * scales
    Z = moments_of(X).affine()(X)
    assert_allclose(Z.mean(axis=0), 0, atol=1e-12)
    assert_allclose(Z.std(axis=0), 1, rtol=1e-12)


def test_arrays_tensors_and_sparse_matrices_have_the_same_moments():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)) * (rng.random((20, 3)) < 0.5)
    expected = moments_of(X).affine()
    for other in (torch.from_numpy(X), sparse.csr_array(X), np.asfortranarray(X)):
        moments = Moments(3).update(View(other), np.ones(20))
        assert_array_equal(moments.affine().mean, expected.mean)
        assert_array_equal(moments.affine().scale, expected.scale)
    # The rows themselves are left alone.
    assert_array_equal(moments_of(X).affine().mean, expected.mean)


def test_a_spread_beyond_float64_names_the_column():
    X = np.array([[0.0, 1.5e308], [1.0, -1.5e308]])
    with pytest.raises(ValueError, match=r"that of column 1 does not\. Scale"):
        moments_of(X)


# --------------------------------------------------------------------------------------
# Affine
# --------------------------------------------------------------------------------------


def affine(seed, n=3, offset=10.0):
    rng = np.random.default_rng(seed)
    return Affine(rng.normal(size=n) * offset, rng.uniform(0.1, 10, n))


def assert_same(a, b, rtol=1e-10):
    assert_allclose(a.mean, b.mean, rtol=rtol, atol=rtol)
    assert_allclose(a.scale, b.scale, rtol=rtol)


@given(seeds, seeds, seeds)
def test_affine_maps_are_a_group(first, second, third):
    f, g, h = affine(first), affine(second), affine(third)
    x = np.random.default_rng(0).normal(size=(4, 3))
    close = {"rtol": 1e-9, "atol": 1e-9}
    assert_allclose(f.compose(g)(x), f(g(x)), **close)
    assert_allclose(f.inverse()(x), f.undo(x), **close)
    assert_allclose(f.undo(f(x)), x, **close)
    identity = Affine.identity(3)
    assert_array_equal(identity(x), x)
    assert_same(f.compose(identity), f)
    assert_same(identity.compose(f), f)
    assert_same(f.compose(f.inverse()), identity)
    assert_same(f.inverse().compose(f), identity)
    assert_same(f.compose(g.compose(h)), f.compose(g).compose(h))
    assert_same(f.compose(g).inverse(), g.inverse().compose(f.inverse()))


@given(seeds, seeds)
def test_relative_to_changes_coordinates(first, second):
    f, g = affine(first), affine(second)
    x = np.random.default_rng(0).normal(size=(4, 3))
    assert_allclose(f.relative_to(g)(g(x)), f(x), rtol=1e-9, atol=1e-9)
    assert_same(f.relative_to(g), f.compose(g.inverse()), rtol=1e-9)
    assert_same(f.relative_to(f), Affine.identity(3))
    assert_same(f.relative_to(Affine.identity(3)), f)


def test_relative_to_loses_nothing_where_means_are_close_and_large():
    f, g = (
        Affine(np.array([1e14 + 1]), np.ones(1)),
        Affine(np.array([1e14]), np.ones(1)),
    )
    assert_array_equal(f.relative_to(g).mean, [1.0])


def test_affine_as_tensors():
    f = affine(0)
    mean, scale = f.tensors("cpu")
    assert mean.dtype == scale.dtype == torch.float64
    assert_array_equal(mean.numpy(), f.mean)
    assert_array_equal(scale.numpy(), f.scale)
    mean.zero_()
    assert f.mean.any()
