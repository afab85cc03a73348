"""How rows get to a device: read ahead, in large pieces, without waiting."""

import threading

import numpy as np
import pytest
import torch
from pretend_device import counting
from scipy import sparse

from sklearn_fpe._engine import (
    _device,
    _in_training,
    _moments,
    _rows,
    _streamed_rows,
    _views,
)
from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._views import View
from sklearn_fpe.nn import Affine

N_ROWS, N_COLUMNS = 1000, 12
RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (N_ROWS, N_COLUMNS)).astype(np.float32)
WEIGHTS = RNG.uniform(0.5, 2, N_ROWS)


@pytest.fixture
def small_pieces(monkeypatch):
    """Cut rows into pieces of ``n`` rows on all kinds of device."""

    def cut(n):
        for name in ("CHUNK_BYTES", "LARGE_CHUNK_BYTES"):
            monkeypatch.setattr(_device, name, 8 * N_COLUMNS * n)
        real = _views.chunks
        for module in (_moments, _rows):
            monkeypatch.setattr(
                module, "chunks", lambda n, d, b=8 * N_COLUMNS * n: real(n, d, b)
            )

    return cut


class LateCopies(_device.Copies):
    """Copies that happen as late as they may: when they are waited for, or at the end.

    A buffer that is filled again too early spoils the copy.
    """

    def __init__(self, device):
        super().__init__(device)
        self.pending, self.n_waits = [], 0
        LateCopies.last = self

    def copy(self, pinned):
        there = torch.full_like(pinned, -1)
        job = [there, pinned]
        self.pending.append(job)

        def wait():
            self.n_waits += 1
            self.finish(job)

        return there, wait

    def finish(self, job):
        if job in self.pending:
            self.pending.remove(job)
            job[0].copy_(job[1])


@pytest.fixture
def late_copies(monkeypatch):
    """Let the CPU be a device with pinned memory and late copies."""
    monkeypatch.setattr(_device, "PINNING", frozenset({"cpu"}))
    monkeypatch.setattr(_device, "COPIES", {"cpu": LateCopies})
    monkeypatch.setattr(
        _device, "empty_pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype)
    )


def arrays(n=7):
    rng = np.random.default_rng(1)
    dtypes = [np.float32, np.float64, np.int16, bool, np.float16, ">f4", np.uint8]
    return [
        rng.normal(size=(5 + i, 3)).astype(dtypes[i % len(dtypes)]) for i in range(n)
    ]


def test_buffers_are_not_filled_before_they_are_copied(late_copies):
    parts = arrays(20)
    found = list(_device.uploaded(iter(parts), torch.device("cpu")))
    copies = LateCopies.last
    assert copies.n_waits >= len(parts) - 2
    for job in list(copies.pending):
        copies.finish(job)
    for there, part in zip(found, parts, strict=True):
        np.testing.assert_array_equal(there.numpy(), part)


@pytest.mark.parametrize("where", ["cpu", "pretend"])
def test_uploaded_arrays_are_copies(pretend, where):
    parts = [*arrays(), X[::-1][:9], X[:, ::-1], torch.from_numpy(X), X[:0], X.T]
    read_only = X[:8].copy()
    read_only.flags.writeable = False
    parts.append(read_only)
    found = list(_device.uploaded(iter(parts), torch.device(where)))
    for there, part in zip(found, parts, strict=True):
        assert there.device.type == where
        np.testing.assert_array_equal(there.cpu().numpy(), np.asarray(part))


def test_an_error_of_reading_is_raised(late_copies):
    n_threads = threading.active_count()

    def parts():
        yield X
        raise OSError("the disk is gone")

    pieces = _device.uploaded(parts(), torch.device("cpu"))
    next(pieces)
    with pytest.raises(OSError, match="the disk is gone"):
        next(pieces)
    assert threading.active_count() == n_threads


def test_reading_ends_when_nobody_wants_the_rest(late_copies):
    read, n_threads = [], threading.active_count()

    def parts():
        for part in arrays(50):
            read.append(1)
            yield part

    pieces = _device.uploaded(parts(), torch.device("cpu"))
    next(pieces)
    pieces.close()
    assert threading.active_count() == n_threads
    assert len(read) <= 5


INPUTS = {
    "array": X,
    "float64": X.astype(float),
    "integers": (10 * X).astype(np.int32),
    "sparse": sparse.csr_matrix(X),
    "long double": X.astype(np.longdouble),
    "tensor": torch.from_numpy(X),
    "constant column": X * (np.arange(N_COLUMNS) > 3),
    "tiny column": X * np.geomspace(1e-200, 1, N_COLUMNS),
    "huge column": X * np.geomspace(1, 1e250, N_COLUMNS),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("n", [1, 130, 5000])
@pytest.mark.parametrize("some", [False, True])
def test_moments_on_a_device_have_the_bits_of_the_cpu(
    pretend, small_pieces, name, n, some
):
    small_pieces(n)
    index = np.flatnonzero(RNG.random(N_ROWS) < 0.4) if some else None
    view, weights = View(INPUTS[name], index), WEIGHTS
    weights = weights if index is None else weights[index]
    plain, there = Moments(N_COLUMNS), Moments(N_COLUMNS)
    for _ in range(2):
        plain.update(view, weights)
        there.update(view, weights, device=pretend)
        for key, value in plain.to_state().items():
            np.testing.assert_array_equal(there.to_state()[key], value, err_msg=key)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("some", [False, True])
def test_rows_on_a_device_have_the_bits_of_the_cpu(pretend, small_pieces, name, some):
    small_pieces(130)
    index = np.arange(0, N_ROWS, 3) if some else None
    view = View(INPUTS[name], index)
    affine = Moments(N_COLUMNS).update(view, np.ones(len(view))).affine()
    batches = []
    for device in (torch.device("cpu"), pretend):
        rows = _in_training.make_rows(
            view, torch.arange(len(view)), np.ones(len(view)), affine, device
        )
        for seed in (None, (1, 0), (1, 1), (1, 5), (1, 6)):
            batches.append(list(rows.batches(64, seed)))
    half = len(batches) // 2
    for some_batches, others in zip(batches[:half], batches[half:], strict=True):
        for (x, target), (x_there, there) in zip(some_batches, others, strict=True):
            assert torch.equal(x, x_there.cpu())
            for a, b in zip(target, there, strict=True):
                assert torch.equal(a, b.cpu())


def load(rows):
    return next(iter(rows.batches(N_ROWS)))


@pytest.mark.parametrize("kind", ["array", "tensor", "device tensor"])
def test_no_wait_and_few_launches_for_a_piece(pretend, small_pieces, kind):
    rows = X if kind == "array" else torch.from_numpy(X)
    view = View(rows.to(pretend) if kind == "device tensor" else rows)
    waits, launches = [], []
    for n in (500, 50):
        small_pieces(n)
        with counting() as counts:
            affine = Moments(N_COLUMNS).update(view, WEIGHTS, device=pretend).affine()
            targets = torch.arange(N_ROWS)
            load(_in_training.make_rows(view, targets, WEIGHTS, affine, pretend))
        waits.append(counts.n_waits)
        launches.append(counts.n_launches)
    assert waits[0] == waits[1] <= 2
    assert launches[1] - launches[0] <= 18 * 18  # 18 more pieces


def test_an_order_is_drawn_ahead(pretend, monkeypatch):
    before = set(threading.enumerate())
    view, affine = View(X), Affine.identity(N_COLUMNS)
    rows = _in_training.make_rows(view, torch.arange(N_ROWS), WEIGHTS, affine, pretend)
    drawn = []
    real = _rows.permutation

    def permutation(n, seed, out=None):
        drawn.append((seed, threading.current_thread() is threading.main_thread()))
        return real(n, seed, out)

    monkeypatch.setattr(_rows, "permutation", permutation)
    load(rows)
    with counting() as counts:
        for epoch in range(3):
            list(rows.batches(100, (7, epoch)))
    assert counts.n_waits == 0
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert [seed for seed, _ in drawn] == [(7, 0), (7, 1), (7, 2), (7, 3)]
    assert not any(in_main for _, in_main in drawn)


@pytest.mark.parametrize("kind", ["map", "sparse"])
@pytest.mark.parametrize("seed", [None, (3, 4)])
def test_streamed_rows_wait_for_nothing(pretend, tmp_path, monkeypatch, kind, seed):
    monkeypatch.setattr(_views, "STREAM_ABOVE", 0)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BLOCK", 32)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BYTES", 4 * N_COLUMNS * 200)
    np.save(tmp_path / "x.npy", X)
    data = sparse.csr_matrix(X)
    if kind == "map":
        data = np.load(tmp_path / "x.npy", mmap_mode="r")
    view, affine = View(data), Affine(X.mean(0).astype(float), X.std(0).astype(float))
    found = []
    for device in (torch.device("cpu"), pretend):
        rows = _in_training.make_rows(
            view, torch.arange(N_ROWS), WEIGHTS, affine, device
        )
        assert not rows.resident
        list(rows.batches(50, seed))  # mean and scale are copied once
        with counting() as counts:
            found.append(list(rows.batches(50, seed)))
    assert counts.n_waits == 0
    for (x, target), (x_there, there) in zip(*found, strict=True):
        assert torch.equal(x, x_there.cpu())
        for a, b in zip(target, there, strict=True):
            assert torch.equal(a, b.cpu())
