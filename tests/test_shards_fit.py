"""Fits and predictions on lazy arrays of rows in many files."""

import collections
import shutil
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from shard_files import cut, write_npy, write_parquet
from sklearn.model_selection import GridSearchCV, train_test_split

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine import _in_training, _streamed_rows, _views
from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._estimators import _inputs, _job
from sklearn_fpe.datasets import _npy, _parquet, open_shards
from sklearn_fpe.nn import Affine

N_ROWS, N_COLUMNS = 120, 6
BOUNDS = [10, 10, 23, 70, 71, 72]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N_ROWS, N_COLUMNS)).astype(np.float16)
Y = (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)
QUICK = {"max_iter": 3, "warmup": 1, "random_state": 0, "device": "cpu"}


def make(kind, **settings):
    return kind((4,), **{**QUICK, "batch_size": 16, **settings})


@pytest.fixture(params=["npy", "parquet"])
def shards(request, tmp_path):
    if request.param == "npy":
        write_npy(tmp_path / "img_emb", cut(X, BOUNDS))
    else:
        pytest.importorskip("pyarrow", reason="pyarrow, of the extra 'parquet'")
        write_parquet(tmp_path / "img_emb", cut(X, BOUNDS))
    return open_shards(tmp_path / "img_emb")


@pytest.fixture
def memory_map(tmp_path):
    np.save(tmp_path / "X.npy", X)
    return np.load(tmp_path / "X.npy", mmap_mode="r")


@pytest.fixture
def streamed(monkeypatch):
    """Stream small arrays, in small blocks."""
    monkeypatch.setattr(_views, "STREAM_ABOVE", 0)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BLOCK", 8)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BYTES", 4 * 8 * 3 * N_COLUMNS)


def assert_same_bits(one, other):
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            a, b = (v.toarray() if hasattr(v, "toarray") else v for v in (a, b))
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_small_shards_are_loaded_like_the_array(shards, kind, early_stopping):
    settings = {"early_stopping": early_stopping, "validation_fraction": 0.3}
    model = make(kind, **settings).fit(shards, Y)
    assert_same_bits(model, make(kind, **settings).fit(X, Y))
    shuffled = np.random.default_rng(1).permutation(N_ROWS)
    model = make(kind, **settings).fit(shards[shuffled], Y[shuffled])
    assert_same_bits(model, make(kind, **settings).fit(X[shuffled], Y[shuffled]))


@pytest.mark.parametrize("batch_size", [16, 7, 50])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_npy_shards_are_streamed_like_one_memory_map(
    streamed, tmp_path, memory_map, early_stopping, batch_size
):
    write_npy(tmp_path / "img_emb", cut(X, BOUNDS))
    settings = {"early_stopping": early_stopping, "batch_size": batch_size}
    model = make(FPEClassifier, **settings).fit(open_shards(tmp_path / "img_emb"), Y)
    assert_same_bits(model, make(FPEClassifier, **settings).fit(memory_map, Y))


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_streamed_shards_are_fitted_as_well(streamed, shards, kind):
    weights = np.random.default_rng(2).integers(0, 3, N_ROWS)
    model = make(kind).fit(shards, Y, sample_weight=weights)
    plain = make(kind).fit(X, Y, sample_weight=weights)
    # Same statistics, another order of the rows.
    np.testing.assert_allclose(model.learned_.affine.mean, plain.learned_.affine.mean)
    np.testing.assert_allclose(model.learned_.affine.scale, plain.learned_.affine.scale)
    assert 0.3 < model.loss_curve_[-1] / plain.loss_curve_[-1] < 3
    assert_same_bits(model, make(kind).fit(shards, Y, sample_weight=weights))


def test_the_order_of_a_view_does_not_change_a_streamed_fit(streamed, shards):
    """Rows are read in the order of the files, with their targets and weights."""
    shuffled = np.random.default_rng(1).permutation(N_ROWS)
    weights = np.random.default_rng(2).integers(0, 3, N_ROWS)
    model = make(FPEClassifier).fit(shards, Y, sample_weight=weights)
    again = make(FPEClassifier).fit(
        shards[shuffled], Y[shuffled], sample_weight=weights[shuffled]
    )
    assert_same_bits(model, again)


@pytest.mark.parametrize("rows", ["all", "shuffled", "some"])
def test_predictions_are_those_of_the_array(shards, rows):
    rows = {
        "all": slice(None),
        "shuffled": np.random.default_rng(1).permutation(N_ROWS),
        "some": np.random.default_rng(1).integers(0, N_ROWS, 40),
    }[rows]
    model = make(FPEClassifier).fit(X, Y)
    np.testing.assert_array_equal(model.predict(shards[rows]), model.predict(X[rows]))
    np.testing.assert_allclose(
        model.predict_proba(shards[rows]), model.predict_proba(X[rows]), atol=1e-6
    )
    assert model.score(shards[rows], Y[rows]) == model.score(X[rows], Y[rows])
    found = make(FPETransformer).fit(X, Y)
    np.testing.assert_allclose(
        found.transform(shards[rows]), found.transform(X[rows]), atol=1e-6
    )


@pytest.mark.parametrize("is_streamed", [False, True])
def test_partial_fit_takes_shards(shards, is_streamed, request, memory_map):
    if is_streamed:
        request.getfixturevalue("streamed")
    model, plain = (make(FPEClassifier, expansion=2) for _ in range(2))
    classes = np.unique(Y)
    for rows in (slice(0, 50), slice(50, None), slice(None)):
        model.partial_fit(shards[rows], Y[rows], classes=classes)
        plain.partial_fit(memory_map[rows], Y[rows], classes=classes)
    if is_streamed and shards.files[0].endswith(".parquet"):
        assert model.n_iter_ == plain.n_iter_ == 3
        return  # row groups are shuffled, not blocks
    assert_same_bits(model, plain)


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("batch_size", [4, 9, 100, 1000])
def test_every_row_is_read_once_an_epoch(
    streamed, shards, monkeypatch, batch_size, seeded
):
    read = collections.Counter()
    for module, name in ((_npy, "NpyReader"), (_parquet, "ParquetReader")):
        reader = getattr(module, name)
        real = reader.read_into

        def read_into(self, out, rows, real=real):
            real(self, out, rows)
            read.update(map(bytes, out))

        monkeypatch.setattr(reader, "read_into", read_into)
    decoded = collections.Counter()
    decode = _parquet.decode

    def counting(file, lists, start):
        decoded[file.path, start] += 1
        return decode(file, lists, start)

    monkeypatch.setattr(_parquet, "decode", counting)
    rows = _in_training.make_rows(
        _views.View(shards),
        torch.arange(N_ROWS),
        np.ones(N_ROWS),
        Affine.identity(N_COLUMNS),
        torch.device("cpu"),
    )
    assert isinstance(rows, _streamed_rows.StreamedRows)
    orders = []
    for epoch in range(3):
        batches = list(rows.batches(batch_size, (0, epoch) if seeded else None))
        for x, (targets, _) in batches:
            np.testing.assert_array_equal(x, X[targets])
        sizes = [len(x) for x, _ in batches]
        assert len(sizes) == -(-N_ROWS // batch_size)
        assert set(sizes[:-1]) <= {batch_size}
        orders.append(torch.cat([targets for _, (targets, _) in batches]).tolist())
        assert sorted(orders[-1]) == list(range(N_ROWS))
        assert set(read.values()) == {epoch + 1}
        assert len(read) == N_ROWS
    # Fewer where the last piece of an epoch is the first of the next.
    assert all(n <= 3 for n in decoded.values())
    assert (orders[0] != orders[1]) == seeded


def test_a_split_of_parquet_files_is_decoded_once_an_epoch(
    streamed, tmp_path, monkeypatch
):
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "img_emb", cut(X, BOUNDS))
    shards = open_shards(tmp_path / "img_emb")
    train, test, y_train, y_test = train_test_split(shards, Y, random_state=0)
    decoded = []
    decode = _parquet.decode

    def counting(file, lists, start):
        decoded.append((file.path, start))
        return decode(file, lists, start)

    monkeypatch.setattr(_parquet, "decode", counting)
    model = make(FPEClassifier).fit(train, y_train)
    # Values are checked, then moments are summed, then three epochs.
    assert max(collections.Counter(decoded).values()) <= 5
    decoded.clear()
    model.score(test, y_test)
    assert max(collections.Counter(decoded).values()) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_search_over_shards(shards, is_streamed, request):
    if is_streamed:
        request.getfixturevalue("streamed")
    grid = {"expansion": [1, 2]}
    search = GridSearchCV(make(FPEClassifier), grid, cv=3).fit(shards, Y)
    plain = GridSearchCV(make(FPEClassifier), grid, cv=3).fit(X, Y)
    found, expected = (s.cv_results_["mean_test_score"] for s in (search, plain))
    if is_streamed:
        assert np.abs(found - expected).max() < 0.3
    else:
        np.testing.assert_array_equal(found, expected)


def test_workers_open_the_files_themselves(shards):
    grid = {"expansion": [1, 2]}
    alone, workers = (
        GridSearchCV(make(FPEClassifier), grid, cv=3, n_jobs=n).fit(shards, Y)
        for n in (1, 2)
    )
    assert_same_bits(alone.best_estimator_, workers.best_estimator_)


def test_warm_up_cache_depends_on_the_content_of_the_files(tmp_path):
    for folder, part in (("a", X), ("b", X), ("c", X + 1)):
        write_npy(tmp_path / folder, cut(part, BOUNDS))
    memory = joblib.Memory(tmp_path / "cache", verbose=0)
    stored = []
    for folder in "abc":
        make(FPEClassifier, memory=memory).fit(open_shards(tmp_path / folder), Y)
        stored.append(len(list(Path(memory.location).rglob("output.pkl"))))
    assert stored == [1, 1, 2]


class Recorder:
    """A callback that keeps what it has seen last."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, metadata=None):
        self.seen = X, y, metadata["sample_weight"]


def test_callbacks_see_rows_and_weights_that_belong_together(streamed, shards):
    rows = np.random.default_rng(1).permutation(N_ROWS)
    weights = 1.0 + np.arange(N_ROWS)
    recorder = Recorder()
    model = make(FPEClassifier).set_callbacks(recorder)
    model.fit(shards[rows], Y[rows], sample_weight=weights[rows])
    seen, targets, seen_weights = recorder.seen
    np.testing.assert_array_equal(seen_weights, weights)
    np.testing.assert_array_equal(targets, Y)
    np.testing.assert_array_equal(seen, X)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_values_are_named_with_their_file(tmp_path, value):
    bad = X.copy()
    bad[75, 2] = value
    write_npy(tmp_path, cut(bad, BOUNDS))
    shards = open_shards(tmp_path)
    message = r"(?s)Input X contains .* first such row is row 3 of '.*img_emb_6\.npy'"
    rows = np.random.default_rng(0).permutation(N_ROWS)
    with pytest.raises(ValueError, match=message):
        make(FPEClassifier).fit(shards[rows], Y[rows])
    model = make(FPEClassifier).fit(X, Y)
    with pytest.raises(ValueError, match=message):
        model.predict(shards[rows])


def test_damage_that_appears_during_a_fit_is_named(streamed, tmp_path, monkeypatch):
    paths = write_npy(tmp_path, cut(X, BOUNDS))
    shards = open_shards(tmp_path)

    def damage(*args):
        with open(paths[3], "r+b") as file:
            file.truncate(200)
        return make_trainer(*args)

    make_trainer = _job.Trainer
    monkeypatch.setattr(_job, "Trainer", damage)
    with pytest.raises(ValueError, match=r"img_emb_3\.npy' has changed since"):
        FPEClassifier((4,), **QUICK).fit(shards, Y)


def test_shapes_that_do_not_fit_are_refused(shards):
    model = make(FPEClassifier)
    with pytest.raises(ValueError, match=r"at least \(1, 1\), got shape \(0, 6\)"):
        model.fit(shards[:0], Y[:0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(shards[:9], Y)
    model.fit(X[:, :5], Y)
    with pytest.raises(ValueError, match=r"X has 6 features, but .* expecting 5"):
        model.predict(shards)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_reading_all_rows_adds_little_memory(monkeypatch, tmp_path, kind):
    """The bound on a fit of full size is measured by ``benchmarks/shards.py``."""
    from benchmarks._rss import peak_anonymous

    part = np.random.default_rng(0).standard_normal((8192, 256), np.float32)
    if kind == "npy":
        (path,) = write_npy(tmp_path, [part.astype(np.float16)])
    else:
        pytest.importorskip("pyarrow")
        (path,) = write_parquet(tmp_path, [part], fixed=True, group=4096)
    for i in range(1, 24):
        shutil.copy(path, tmp_path / f"img_emb_{i}.{kind}")
    shards = open_shards(tmp_path)
    monkeypatch.setattr(_views, "STREAM_ABOVE", 0)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BYTES", 2**22)

    def read(X):
        _inputs.check_X(FPEClassifier(), X, reset=True)
        view = _views.View(X)
        Moments(256).update(view, np.ones(len(X)))
        rows = _in_training.make_rows(
            view,
            torch.zeros(len(X)),
            np.ones(len(X)),
            Affine.identity(256),
            torch.device("cpu"),
        )
        for _ in rows.batches(1024, (0, 1)):
            pass

    read(shards[:5000])  # what is imported and allocated once
    grown = peak_anonymous(lambda: read(shards))
    # Arrow keeps memory for later; it does not keep more of more files.
    assert grown < 4 * shards.size * (0.4 if kind == "npy" else 0.75)
