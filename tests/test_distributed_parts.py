"""The parts of a distributed fit, without processes: dealing, merging, reducing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import r2_score
from sklearn.utils import compute_class_weight

from sklearn_fpe._engine import _streamed_rows
from sklearn_fpe._engine._deal import deal
from sklearn_fpe._engine._lazy import LazyArray
from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._rows import Rows
from sklearn_fpe._engine._streamed_rows import StreamedRows
from sklearn_fpe._engine._views import Sample, View
from sklearn_fpe._engine._world import SINGLE, World, digest
from sklearn_fpe._estimators._real_targets import RealTargets
from sklearn_fpe._estimators._targets import ClassTargets
from sklearn_fpe._estimators._together import all_labels, split_off
from sklearn_fpe.nn import Affine


class ThreadWorld(World):
    """Processes that are threads."""

    def __init__(self, rank, size, board, barrier):
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def gather(self, value, what):
        self.board[self.rank] = value
        self.barrier.wait(30)
        found = list(self.board)
        self.barrier.wait(30)
        return found

    def total(self, value, what):
        return sum(np.asarray(v, dtype=float) for v in self.gather(value, what))

    def check_equal(self, value, what, hint=""):
        values = self.gather(value, what)
        assert all(other == values[0] for other in values)


def together(function, parts):
    """Return ``function(world, part)`` of threads that form a world."""
    n = len(parts)
    board, barrier = [None] * n, threading.Barrier(n)
    worlds = [ThreadWorld(rank, n, board, barrier) for rank in range(n)]
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(function, worlds, parts))


def pieces(array, n):
    return np.array_split(array, n)


# --------------------------------------------------------------------------------------
# Dealing rows to steps
# --------------------------------------------------------------------------------------

COUNTS = st.lists(st.integers(1, 400), min_size=2, max_size=9)


@given(COUNTS, st.integers(1, 300))
def test_all_processes_do_the_same_steps_and_use_every_row_once(counts, n_together):
    deals = [deal(counts, rank, n_together) for rank in range(len(counts))]
    first = deals[0]
    assert first.sizes.sum() == sum(counts)
    assert first.sizes.min() >= 1
    # Shares are rounded up, by less than a row a process.
    assert first.sizes.max() < n_together + len(counts)
    own = np.zeros((len(counts), first.n_steps), dtype=int)
    for rank, (one, n_rows) in enumerate(zip(deals, counts, strict=True)):
        np.testing.assert_array_equal(one.sizes, first.sizes)
        own[rank, one.used] = one.batch_size
        own[rank, np.flatnonzero(one.used)[-1]] += n_rows - own[rank].sum()
        assert own[rank].sum() == n_rows
        assert own[rank][one.used].min() >= 1
    np.testing.assert_array_equal(own.sum(axis=0), first.sizes)


@given(COUNTS)
def test_full_batches_are_one_step(counts):
    assert deal(counts, 0, sum(counts)).n_steps == 1


@given(st.lists(st.integers(1, 60), min_size=2, max_size=4), st.integers(1, 50))
def test_the_sum_over_processes_is_the_mean_over_the_rows_of_a_step(counts, n_together):
    columns = []
    for rank, n_rows in enumerate(counts):
        x = np.arange(n_rows, dtype=float)[:, None] + 1000 * rank
        rows = Rows(
            View(x),
            torch.arange(n_rows),
            np.full(n_rows, 3.0),
            Affine.identity(1),
            torch.device("cpu"),
        )
        batches = deal(counts, rank, n_together).batches(rows, (0, rank))
        assert len(list(batches)) == len(batches)
        columns.append(list(batches))
    sizes = deal(counts, 0, n_together).sizes
    seen = []
    for size, step in zip(sizes, zip(*columns, strict=True), strict=True):
        shares = [w / len(x) for x, (_, w) in step]
        for (x, _), share in zip(step, shares, strict=True):
            seen += x[share > 0].flatten().tolist()
            torch.testing.assert_close(
                share[share > 0], torch.full_like(share[share > 0], 3 / size)
            )
    expected = [i + 1000.0 * rank for rank, n in enumerate(counts) for i in range(n)]
    assert sorted(seen) == expected


class RunsOfRows(LazyArray):
    """A matrix in files whose rows come in runs of any lengths."""

    def __init__(self, X, lengths):
        self.X, self.shape, self.dtype = X, X.shape, X.dtype
        self.starts = np.cumsum([0, *lengths[:-1]])

    def __getitem__(self, key):
        raise NotImplementedError

    def read(self, rows):
        return self.X[rows]

    def file_order(self):
        return None

    def runs(self, index):
        return self.starts

    def place(self, row):
        return ""


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=12),
    st.integers(1, 25),
    st.integers(1, 9),
    st.sampled_from(["files", "sparse"]),
    st.sampled_from([None, (1, 2)]),
)
def test_streamed_batches_are_full_but_the_last(lengths, size, block, kind, seed):
    x = np.arange(sum(lengths), dtype=float)[:, None] + 1
    X = RunsOfRows(x, lengths) if kind == "files" else sparse.csr_matrix(x)
    rows = StreamedRows(
        View(X),
        torch.arange(len(x)),
        np.ones(len(x)),
        Affine.identity(1),
        torch.device("cpu"),
    )
    with (
        mock.patch.object(_streamed_rows, "SHUFFLE_BLOCK", block),
        mock.patch.object(_streamed_rows, "SHUFFLE_BYTES", 4 * 3 * block),
    ):
        found = list(rows.batches(size, seed))
    assert all(len(x) == size for x, _ in found[:-1])
    assert 1 <= len(found[-1][0]) <= size
    for of_x, (targets, weights) in found:
        assert (of_x[:, 0] == targets + 1).all()
        assert len(weights) == len(targets) == len(of_x)
    numbers = torch.cat([targets for _, (targets, _) in found]).tolist()
    assert sorted(numbers) == list(range(len(x)))


# --------------------------------------------------------------------------------------
# Merging and reducing
# --------------------------------------------------------------------------------------

SIZES = st.sampled_from([0.0, 1e-200, 1e-120, 1e-8, 1.0, 1e7, 1e120, 1e150])


@given(st.integers(1, 5), SIZES, SIZES, st.integers(0, 99))
def test_merged_moments_are_those_of_all_rows(n_parts, spread, offset, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(23, 4)) * spread + offset
    X[:, 1] = offset
    X[:, 2] = np.where(np.arange(23) < 9, -offset, offset)  # constant within parts
    weights = rng.uniform(0.1, 5, 23)
    expected = Moments(4).update(View(X), weights)

    def merged(world, rows):
        return Moments(4).update(View(X[rows]), weights[rows], world=world)

    found = together(merged, pieces(np.arange(23), n_parts))
    assert len({digest(moments.to_state().values()) for moments in found}) == 1
    mean, scale = found[0].affine().mean, found[0].affine().scale
    np.testing.assert_allclose(mean, expected.affine().mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(found[0].constant(), expected.constant())
    np.testing.assert_allclose(scale, expected.affine().scale, rtol=1e-9)
    assert found[0].exactly_constant()[1]
    assert found[0].weight == pytest.approx(weights.sum())


def test_merging_keeps_a_small_spread_beside_a_large_mean():
    X = 1e12 + np.arange(40.0)[:, None] * 2e-4
    expected = Moments(1).update(View(X), np.ones(40)).affine().scale
    for n_parts in (2, 3, 40):
        moments = Moments(1)
        for part in pieces(X, n_parts):
            moments.merge(Moments(1).update(View(part), np.ones(len(part))))
        np.testing.assert_allclose(moments.affine().scale, expected, rtol=1e-12)


def test_a_spread_that_float64_does_not_hold_is_an_error():
    low, high = (
        Moments(2).update(View(np.array([[0.0, s]])), np.ones(1))
        for s in (-1.5e308, 1.5e308)
    )
    with pytest.raises(ValueError, match=r"spread of every column of X .*column 1"):
        low.merge(high)


@pytest.mark.parametrize("n_parts", [2, 5])
@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_r2_of_all_processes(n_parts, size):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(40, 3)) * [1, 2, 0] + 3
    outputs, weights = y + rng.normal(size=y.shape), rng.uniform(0.1, 3, 40)
    # The score of a constant column is 0; scikit-learn's weighted mean is not exact.
    expected = r2_score(y[:, :2], outputs[:, :2], sample_weight=weights) * 2 / 3
    targets = RealTargets()
    targets.check(y * size, weights, learn=True)

    def score(world, rows):
        part = outputs[rows] * size
        return targets.score(y[rows] * size, part, weights[rows], world)

    for found in together(score, pieces(np.arange(40), n_parts)):
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n_parts", [2, 5])
def test_balanced_weights_and_classes_of_all_processes(n_parts):
    rng = np.random.default_rng(0)
    y = np.sort(rng.choice(["ant", "bee", "caterpillar"], 50, p=[0.6, 0.3, 0.1]))
    weights = rng.uniform(0.1, 3, 50)
    classes = np.unique(y)
    balanced = compute_class_weight(
        "balanced", classes=classes, y=y, sample_weight=weights
    )
    expected = balanced[np.searchsorted(classes, y)] * weights

    def weigh(world, rows):
        targets = ClassTargets("balanced")
        part = targets.check(y[rows], weights[rows], learn=True, world=world)
        return targets.classes, targets.row_weights(part, weights[rows], world)

    found = together(weigh, pieces(np.arange(50), n_parts))
    for of_process, _ in found:
        np.testing.assert_array_equal(of_process, classes)
    np.testing.assert_allclose(np.concatenate([w for _, w in found]), expected)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([2, 1], [3], [1, 2, 3]),
        ([True], [False], [False, True]),
        (["a", "long label"], ["b"], ["a", "b", "long label"]),
        (np.array(["x"], dtype=object), ["y"], ["x", "y"]),
        (["2026-01-01"], ["2025-01-01"], ["2025-01-01", "2026-01-01"]),
    ],
)
def test_labels_of_any_type_are_united(first, second, expected):
    parts = [np.unique(np.asarray(part)) for part in (first, second)]
    if str(expected[0]).startswith("2025"):
        parts = [part.astype("datetime64[D]") for part in parts]
        expected = np.array(expected, dtype="datetime64[D]")
    for found in together(all_labels, parts):
        np.testing.assert_array_equal(found, expected)


def test_labels_of_several_kinds_are_an_error():
    parts = [np.array([1, 2]), np.array(["1", "2"])]
    with pytest.raises(ValueError, match="labels of one kind in all processes"):
        together(all_labels, parts)


@given(st.integers(2, 80), st.floats(0.01, 0.99), st.integers(1, 9), st.integers(0, 99))
def test_a_hold_out_is_stratified_and_never_fails(n_rows, share, n_classes, seed):
    y = np.random.default_rng(seed).integers(n_classes, size=n_rows)
    train, held = split_off(n_rows, share, y, (seed, 1))
    np.testing.assert_array_equal(
        np.sort(np.concatenate([train, held])), np.arange(n_rows)
    )
    assert len(held) == min(np.ceil(share * n_rows), n_rows - 1)
    assert len(train) >= 1
    share = len(held) / n_rows
    for label, n in zip(*np.unique(y, return_counts=True), strict=True):
        assert abs((y[held] == label).sum() - share * n) < 1 + 1e-9


def test_weights_have_the_mean_1_over_all_processes():
    rng = np.random.default_rng(0)
    X, weights = rng.normal(size=(30, 2)), rng.uniform(0.1, 9, 30)
    entries = rng.uniform(0.5, 2, (30, 3))
    for of_entries in (None, entries):
        sample = Sample(View(X), X, weights, of_entries)
        expected = sample.training_weights(SINGLE)

        def weigh(world, rows, sample=sample):
            return sample.take(rows).training_weights(world)

        found = together(weigh, pieces(np.arange(30), 4))
        np.testing.assert_allclose(np.concatenate(found), expected)


def test_a_single_world_returns_what_it_is_given():
    vector = torch.ones(3)
    SINGLE.add_(vector)
    assert vector.tolist() == [1, 1, 1]
    assert SINGLE.gather("a", "letters") == ["a"]
    assert SINGLE.total(2, "numbers") == 2
    assert SINGLE.mean(0.1, 3, "numbers") == 0.1
    SINGLE.check_equal(1, "numbers")


def test_a_digest_depends_on_bytes_shapes_and_types():
    arrays = [np.arange(6.0), np.arange(6.0).reshape(2, 3), np.arange(6), np.ones(6)]
    tensors = [torch.from_numpy(array) for array in arrays]
    digests = [digest([array]) for array in arrays]
    assert len(set(digests)) == 4
    assert digest([np.array([0.0, -0.0])]) == digest([np.array([-0.0, 0.0])])
    assert digests == [digest([tensor]) for tensor in tensors]
