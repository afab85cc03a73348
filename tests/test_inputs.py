"""What X, y and weights may be made of."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.datasets import (
    make_classification,
    make_multilabel_classification,
    make_regression,
)

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine import _device, _in_training, _streamed_rows, _views
from sklearn_fpe._estimators import _inputs
from sklearn_fpe.nn import MLP, Affine, expand

QUICK = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 3, "random_state": 0}


def classification(n_samples=60):
    return make_classification(
        n_samples, 8, n_informative=6, n_classes=3, random_state=0
    )


def rounded():
    """A problem whose X is exact in every type of number."""
    X, y = classification()
    return np.clip(np.round(4 * X), -100, 100), y


def assert_same_bits(one, other):
    for a, b in zip(one.module_.parameters(), other.module_.parameters(), strict=True):
        assert a.equal(b)


# --------------------------------------------------------------------------------------
# Types of numbers and layouts
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    ["f2", "f4", ">f4", "f8", ">f8", "i1", "i2", "i4", "i8", "u8", "O", "longdouble"],
)
def test_type_of_numbers_is_no_matter(dtype):
    X, y = rounded()
    if dtype == "u8":
        X = X + 100
    plain = FPEClassifier(**QUICK).fit(X, y)
    other = FPEClassifier(**QUICK).fit(X.astype(dtype), y)
    assert_same_bits(plain, other)
    np.testing.assert_allclose(
        other.predict_proba(X.astype(dtype)), plain.predict_proba(X), atol=1e-5
    )


def test_booleans():
    X, y = rounded()
    plain = FPEClassifier(**QUICK).fit((X > 0).astype(float), y)
    assert_same_bits(plain, FPEClassifier(**QUICK).fit(X > 0, y))
    np.testing.assert_allclose(
        plain.predict_proba(X > 0), plain.predict_proba((X > 0) * 1.0), atol=1e-5
    )


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "strided": lambda X: np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3],
    "negative strides": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "transposed": lambda X: X.T.copy().T,
    "list": lambda X: X.tolist(),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_no_matter(layout, dtype):
    X, y = rounded()
    change = LAYOUTS[layout]
    plain = FPEClassifier(**QUICK).fit(X, y)
    other = FPEClassifier(**QUICK).fit(change(X.astype(dtype)), y)
    assert_same_bits(plain, other)
    for n_rows in (1, 60):
        np.testing.assert_allclose(
            other.predict_proba(change(X[:n_rows].astype(dtype))),
            plain.predict_proba(X[:n_rows]),
            atol=1e-5,
        )


def test_single_row_with_negative_strides():
    X, y = rounded()
    model = FPEClassifier(**QUICK).fit(X, y)
    X = X.astype(np.float32)
    np.testing.assert_array_equal(
        model.predict_proba(X[::-1][:1]), model.predict_proba(X[-1:])
    )


def test_read_only_arrays_are_left_as_they_are():
    X, y = classification()
    weights = np.ones(60)
    copies = X.copy(), y.copy(), weights.copy()
    for array in (X, y, weights):
        array.flags.writeable = False
    model = FPEClassifier(**QUICK, early_stopping=True, validation_fraction=0.2)
    model.fit(X, y, sample_weight=weights)
    model.predict(X)
    model.predict(X.astype(np.float32))
    model = FPEClassifier(**QUICK).partial_fit(X, y, sample_weight=weights)
    for array, copy in zip((X, y, weights), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --------------------------------------------------------------------------------------
# Frames
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames(frame):
    X, y = classification()
    names = [f"column {i}" for i in range(8)]
    data = frame(dict(zip(names, X.T, strict=True)))
    series = pd.Series(y) if frame is pd.DataFrame else pl.Series(y)
    weights = np.linspace(1, 2, 60)
    model = FPEClassifier(**QUICK, early_stopping=True, validation_fraction=0.2)
    model.fit(data, series, sample_weight=type(series)(weights))
    plain = FPEClassifier(**QUICK, early_stopping=True, validation_fraction=0.2)
    plain.fit(X, y, sample_weight=weights)
    assert_same_bits(plain, model)
    np.testing.assert_array_equal(model.feature_names_in_, names)
    np.testing.assert_array_equal(model.predict(data), plain.predict(X))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(data[names[::-1]])


@pytest.mark.parametrize("dtype", ["category", "string", object])
def test_labels_of_pandas(dtype):
    X, y = classification()
    labels = pd.Series(np.array(["a", "b", "c"])[y]).astype(dtype)
    model = FPEClassifier(**QUICK).fit(X, labels)
    assert list(model.classes_) == ["a", "b", "c"]
    plain = FPEClassifier(**QUICK).fit(X, y)
    assert_same_bits(plain, model)
    assert model.score(X, labels) == plain.score(X, y)


def test_nullable_numbers_of_pandas():
    X, y = rounded()
    frame = pd.DataFrame(X).astype("Int64").astype({0: "Float32"})
    frame.columns = [f"x{i}" for i in range(8)]
    model = FPEClassifier(**QUICK).fit(frame, pd.Series(y).astype("Int64"))
    assert_same_bits(FPEClassifier(**QUICK).fit(X, y), model)
    frame.iloc[3, 2] = pd.NA
    with pytest.raises(ValueError, match="NaN"):
        model.predict(frame)


# --------------------------------------------------------------------------------------
# Sparse matrices
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "container",
    [sparse.csr_array, sparse.csr_matrix, sparse.csc_array, sparse.coo_array],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_sparse_is_dense(container, dtype):
    X, y = rounded()
    X = np.where(np.abs(X) < 4, 0, X).astype(dtype)
    settings = {**QUICK, "early_stopping": True, "validation_fraction": 0.2}
    plain = FPEClassifier(**settings).fit(X, y)
    model = FPEClassifier(**settings).fit(container(X), y)
    assert_same_bits(plain, model)
    np.testing.assert_array_equal(
        model.predict_proba(container(X)), plain.predict_proba(X)
    )


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_sparse_is_never_made_dense_whole(monkeypatch, kind):
    X, y = classification(400)
    X = sparse.csr_array(np.where(np.abs(X) < 1, 0, X))
    rows = []
    real = sparse.csr_array.toarray

    def toarray(self, *args, **kwargs):
        rows.append(self.shape[0])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(sparse.csr_array, "toarray", toarray)
    monkeypatch.setattr(_device, "PREDICTION_BYTES", 8 * 8 * 50)
    monkeypatch.setattr(_views.chunks, "__defaults__", (8 * 8 * 50, 8))
    model = kind(**QUICK, batch_size=40, early_stopping=True).fit(X, y)
    getattr(model, "transform" if kind is FPETransformer else "predict")(X)
    assert rows
    assert max(rows) <= 50


def test_sparse_with_empty_rows_and_columns():
    X, y = rounded()
    X[:, 2] = 0
    X[5] = 0
    plain = FPEClassifier(**QUICK).fit(X, y)
    assert_same_bits(plain, FPEClassifier(**QUICK).fit(sparse.csr_array(X), y))


def test_sparse_targets():
    X, Y = make_multilabel_classification(60, 8, n_classes=3, random_state=0)
    plain = FPEClassifier(**QUICK).fit(X, Y)
    assert_same_bits(plain, FPEClassifier(**QUICK).fit(X, sparse.csr_array(Y)))
    with pytest.raises(TypeError, match=r"[Ss]parse data was passed"):
        FPERegressor(**QUICK).fit(X, sparse.csr_array(Y))


# --------------------------------------------------------------------------------------
# Tensors
# --------------------------------------------------------------------------------------


TENSORS = [
    *("float16", "bfloat16", "float32", "float64"),
    *("int8", "int64", "uint16", "uint32", "uint64"),
]


@pytest.mark.parametrize("dtype", TENSORS)
def test_tensors(dtype):
    X, y = rounded()
    if dtype.startswith("uint"):
        X = X + 100
    tensor = torch.from_numpy(X).to(getattr(torch, dtype))
    weights = np.linspace(1, 2, 60)
    plain = FPEClassifier(**QUICK).fit(X, y, sample_weight=weights)
    model = FPEClassifier(**QUICK).fit(
        tensor, torch.from_numpy(y), sample_weight=torch.from_numpy(weights)
    )
    assert_same_bits(plain, model)
    assert isinstance(model.predict(tensor), np.ndarray)
    np.testing.assert_allclose(
        model.predict_proba(tensor), plain.predict_proba(X), atol=1e-5
    )


class OnAnotherDevice(torch.Tensor):
    """A tensor of eight columns that never comes to the host; what it yields may."""

    def cpu(self):
        assert self.ndim == 1 or self.shape[1] != 8, "this would be a round trip"
        return self.as_subclass(torch.Tensor)

    def numpy(self, *args, **kwargs):
        raise AssertionError("this would be a round trip")

    __array__ = numpy


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_tensors_never_become_arrays(kind):
    X, y = rounded()
    settings = {**QUICK, "early_stopping": True, "validation_fraction": 0.2}
    plain = kind(**settings).fit(X, y)
    away = torch.from_numpy(X).as_subclass(OnAnotherDevice)
    model = kind(**settings).fit(away, y)
    assert_same_bits(plain, model)
    predict = "transform" if kind is FPETransformer else "predict"
    np.testing.assert_array_equal(
        getattr(model, predict)(away), getattr(plain, predict)(X)
    )


def test_tensors_with_gradients_and_of_any_stride():
    X, y = rounded()
    plain = FPEClassifier(**QUICK).fit(X, y)
    tensor = torch.from_numpy(X).requires_grad_()
    assert_same_bits(plain, FPEClassifier(**QUICK).fit(tensor, y))
    tensor = torch.from_numpy(X.T.copy()).T
    assert_same_bits(plain, FPEClassifier(**QUICK).fit(tensor, y))
    negative = torch.complex(torch.zeros(60, 8).double(), -torch.from_numpy(X))
    tensor = negative.conj().imag
    assert tensor.is_neg()
    assert_same_bits(plain, FPEClassifier(**QUICK).fit(tensor, y))
    for data in (tensor, tensor.float()):
        np.testing.assert_allclose(
            plain.predict_proba(data), plain.predict_proba(X), atol=1e-6
        )
    y = torch.from_numpy(y)
    labels = torch.complex(y.double(), -y.double()).conj().imag
    assert labels.is_neg()
    plain = FPERegressor(**QUICK).fit(X, y)
    assert_same_bits(plain, FPERegressor(**QUICK).fit(X, labels))
    assert_same_bits(plain, FPERegressor(**QUICK).fit(X, y.double().requires_grad_()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X * torch.nan, "Input X contains NaN"),
        (lambda X: X / 0.0, "Input X contains (infinity|NaN)"),
        (lambda X: X * torch.inf, "Input X contains (infinity|NaN)"),
        (lambda X: X[0], "X must be of shape"),
        (lambda X: X[:0], "X must be of shape"),
        (lambda X: X[:, :3], "X has 3 features, but"),
        (lambda X: X.to_sparse(), "X must be a dense tensor"),
        (lambda X: X + 1j, "X must be a dense tensor of real numbers"),
        (lambda X: X.to("meta"), "X must be a tensor that holds values, .* 'meta'"),
        (lambda X: X.to(torch.float8_e4m3fn), r"X must not .*float8_e4m3fn.*X.half\("),
        (lambda X: X.to(torch.float8_e5m2), r"X must not .*float8_e5m2"),
    ],
)
def test_bad_tensors(change, message):
    X, y = rounded()
    model = FPEClassifier(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match=message):
        model.predict(change(torch.from_numpy(X)))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors():
    X, y = rounded()
    tensor = torch.quantize_per_tensor(torch.from_numpy(X).float(), 1.0, 0, torch.qint8)
    for data in ((tensor, y), (X, tensor[:, 0])):
        with pytest.raises(ValueError, match="must be a dense tensor"):
            FPERegressor(**QUICK).fit(*data)


@pytest.mark.gpu
def test_tensors_on_the_gpu_stay_there():
    X, y = rounded()
    plain = FPEClassifier(**QUICK, device="cuda").fit(X, y)
    tensor = torch.from_numpy(X).cuda()
    model = FPEClassifier(**QUICK, device="cuda").fit(
        tensor, torch.from_numpy(y).cuda()
    )
    np.testing.assert_allclose(
        model.predict_proba(tensor), plain.predict_proba(X), atol=1e-4
    )


# --------------------------------------------------------------------------------------
# Memory maps
# --------------------------------------------------------------------------------------


def memory_map(tmp_path, X, dtype=np.float32):
    path = tmp_path / "X.npy"
    np.save(path, X.astype(dtype))
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_memory_map_that_is_loaded(tmp_path, dtype):
    X, y = rounded()
    model = FPEClassifier(**QUICK).fit(memory_map(tmp_path, X, dtype), y)
    assert_same_bits(FPEClassifier(**QUICK).fit(X, y), model)


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_memory_map_that_is_streamed(monkeypatch, tmp_path, kind, early_stopping):
    X, y = rounded()
    monkeypatch.setattr(_views, "STREAM_ABOVE", 0)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BLOCK", 8)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BYTES", 4 * 8 * 16)
    made = []
    real = _streamed_rows.StreamedRows.iterate

    def iterate(self, *args):
        made.append(type(self.view.X))
        return real(self, *args)

    monkeypatch.setattr(_streamed_rows.StreamedRows, "iterate", iterate)
    settings = {**QUICK, "early_stopping": early_stopping, "validation_fraction": 0.2}
    model = kind(**settings).fit(memory_map(tmp_path, X), y)
    assert len(made) >= 3
    # Same statistics, another order of the rows.
    plain = kind(**settings).fit(X, y)
    np.testing.assert_allclose(model.learned_.affine.mean, plain.learned_.affine.mean)
    assert 0.3 < model.loss_curve_[-1] / plain.loss_curve_[-1] < 3
    again = kind(**settings).fit(memory_map(tmp_path, X), y)
    assert_same_bits(model, again)


def test_streaming_sees_every_row_once_an_epoch(monkeypatch, tmp_path):
    X, _ = rounded()
    monkeypatch.setattr(_views, "STREAM_ABOVE", 0)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BLOCK", 7)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BYTES", 4 * 8 * 14)
    X[:, 0] = np.arange(60)
    view = _views.View(memory_map(tmp_path, X), np.arange(0, 60, 2))
    rows = _in_training.make_rows(
        view,
        torch.arange(30),
        np.ones(30),
        Affine.identity(8),
        torch.device("cpu"),
    )
    assert isinstance(rows, _streamed_rows.StreamedRows)
    orders = []
    for seed in ((0, 0), (0, 1), None):
        batches = list(rows.batches(4, seed))
        for x, (targets, _) in batches:
            assert len(x) == len(targets)
            assert (x[:, 0] == 2 * targets).all()
        orders.append(torch.cat([targets for _, (targets, _) in batches]).tolist())
        assert sorted(orders[-1]) == list(range(30))
    assert orders[0] != orders[1]
    assert orders[2] == list(range(30))


@pytest.mark.parametrize("split", ["shared", "contiguous"])
@pytest.mark.parametrize("prune", ["magnitude", "structured"])
@pytest.mark.parametrize("n_columns", [8, 7])  # 7 are laid out in two blocks of 4
def test_rows_are_laid_out_alike_before_and_after_their_first_use(
    monkeypatch, split, prune, n_columns
):
    X = rounded()[0][:, :n_columns]
    monkeypatch.setattr(_views.chunks, "__defaults__", (8 * 8 * 7, 8))
    network, _ = expand(MLP.dense([n_columns, 6, 3]), 2, split, prune=prune, rng=0)
    before, after = (
        _in_training.make_rows(
            _views.View(X),
            torch.arange(60),
            np.ones(60),
            Affine(X.mean(axis=0), X.std(axis=0)),
            torch.device("cpu"),
        )
        for _ in range(2)
    )
    (plain,) = [x.clone() for x, _ in after.batches(60)]
    expected = network.arrange(plain)
    for rows in (before, after):
        assert rows.arrange(network) == network.reorders_columns
        batches = list(rows.batches(60))
        assert torch.equal(batches[0][0], expected)
    assert torch.allclose(network.arranged()(expected), network(plain), atol=1e-6)


# --------------------------------------------------------------------------------------
# Targets
# --------------------------------------------------------------------------------------


def test_column_vector_of_labels_becomes_flat_with_a_warning():
    X, y = classification()
    model = FPEClassifier(**QUICK)
    with pytest.warns(match="A column-vector y was passed"):
        model.fit(X, y[:, None])
    assert model.predict(X).shape == (60,)
    assert_same_bits(FPEClassifier(**QUICK).fit(X, y), model)


@pytest.mark.parametrize("form", [np.asarray, list, pd.DataFrame, torch.as_tensor])
def test_indicators_of_several_labels(form):
    X, Y = make_multilabel_classification(60, 8, n_classes=3, random_state=0)
    plain = FPEClassifier(**QUICK).fit(X, Y)
    other = Y.tolist() if form is list else form(Y)
    assert_same_bits(plain, FPEClassifier(**QUICK).fit(X, other))


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i4", "O"])
def test_real_targets_of_any_type(dtype):
    X, Y = make_regression(60, 8, n_targets=2, random_state=0)
    Y = np.round(Y)
    plain = FPERegressor(**QUICK).fit(X, Y)
    assert_same_bits(plain, FPERegressor(**QUICK).fit(X, Y.astype(dtype)))


def test_array_like_that_is_no_array():
    class Sequence:
        def __init__(self, array):
            self.array = array

        def __len__(self):
            return len(self.array)

        def __array__(self, dtype=None, copy=None):
            return np.array(self.array, dtype=dtype)

        @property
        def shape(self):
            return self.array.shape

    X, y = classification()
    model = FPEClassifier(**QUICK).fit(Sequence(X), Sequence(y))
    assert_same_bits(FPEClassifier(**QUICK).fit(X, y), model)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("boolean", [False, True, True]),
        ("Int64", [2**53, 2**53 + 1, 2**60 + 1]),
        ("UInt64", [3, 2**53 + 1, 2**63 - 1]),
        ("string", ["a", "b", "c"]),
        ("Int8", [-1, 0, 1]),
    ],
)
@pytest.mark.parametrize("form", [pd.Series, pd.DataFrame, "category", object])
def test_nullable_labels_come_back_as_they_went_in(dtype, values, form):
    X, y = rounded()
    values = np.array(values)
    labels = pd.Series(values[y], dtype=dtype)
    if form == "category" or form is object:
        labels = labels.astype(form)
    settings = {**QUICK, "early_stopping": True, "validation_fraction": 0.2}
    model = FPEClassifier(**settings)
    if form is pd.DataFrame:
        with pytest.warns(match="A column-vector y was passed"):
            model.fit(X, labels.to_frame(), X_val=X, y_val=labels)
    else:
        model.fit(X, labels, X_val=X, y_val=labels)
    assert model.classes_.tolist() == np.unique(values).tolist()
    kinds = {"string": "O", "boolean": "b"}.get(dtype, "iu")
    assert model.classes_.dtype.kind in kinds
    plain = FPEClassifier(**settings).fit(X, values[y], X_val=X, y_val=values[y])
    assert_same_bits(plain, model)
    assert model.validation_scores_ == plain.validation_scores_


def test_nullable_labels_of_arrow():
    pytest.importorskip("pyarrow")
    X, y = rounded()
    for dtype, values in [
        ("string[pyarrow]", ["a", "b", "c"]),
        ("int64[pyarrow]", [2**53, 2**53 + 1, 2**60 + 1]),
        ("bool[pyarrow]", [False, True, True]),
    ]:
        labels = pd.Series(np.array(values)[y], dtype=dtype)
        model = FPEClassifier(**QUICK).fit(X, labels)
        assert model.classes_.tolist() == sorted(set(values))
        labels[3] = pd.NA
        with pytest.raises(ValueError, match="Input y contains NaN"):
            model.fit(X, labels)


@pytest.mark.parametrize("dtype", ["boolean", "Int64"])
def test_nullable_indicators_of_several_labels(dtype):
    X, Y = make_multilabel_classification(60, 8, n_classes=3, random_state=0)
    plain = FPEClassifier(**QUICK).fit(X, Y)
    assert_same_bits(plain, FPEClassifier(**QUICK).fit(X, pd.DataFrame(Y, dtype=dtype)))


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean"])
def test_nullable_real_targets(dtype):
    X, Y = make_regression(60, 8, n_targets=2, random_state=0)
    Y = Y > 0 if dtype == "boolean" else np.round(Y)
    plain = FPERegressor(**QUICK).fit(X, Y)
    frame = pd.DataFrame(Y).astype(dtype)
    assert_same_bits(plain, FPERegressor(**QUICK).fit(X, frame))
    weights = pd.Series(np.arange(60), dtype="Int64")
    assert_same_bits(
        FPERegressor(**QUICK).fit(X, Y, sample_weight=np.arange(60)),
        FPERegressor(**QUICK).fit(X, frame, sample_weight=weights),
    )
    frame.iloc[3, 1] = pd.NA
    with pytest.raises(ValueError, match="Input y contains NaN"):
        FPERegressor(**QUICK).fit(X, frame)
    weights[3] = pd.NA
    with pytest.raises(ValueError, match="Input sample_weight contains NaN"):
        FPERegressor(**QUICK).fit(X, Y, sample_weight=weights)


MISSING = {
    "None in a list": lambda y: [None, *y[1:]],
    "None among strings": lambda y: [None, *y[1:].astype(str)],
    "NaN among strings": lambda y: [np.nan, *y[1:].astype(str)],
    "NaN in an array": lambda y: np.r_[np.nan, y[1:]],
    "objects": lambda y: np.array([None, *y[1:]], dtype=object),
    "NA": lambda y: np.array([pd.NA, *y[1:]], dtype=object),
    "NaT": lambda y: np.r_[np.datetime64("NaT", "D"), y[1:].astype("M8[D]")],
    "NaT in a duration": lambda y: np.r_[
        np.timedelta64("NaT", "D"), y[1:].astype("m8[D]")
    ],
    "NaT among objects": lambda y: np.array([pd.NaT, *y[1:]], dtype=object),
    "nullable integers": lambda y: pd.Series([None, *y[1:]], dtype="Int64"),
    "nullable floats": lambda y: pd.Series([None, *y[1:]], dtype="Float64"),
    "nullable booleans": lambda y: pd.Series([None, *(y[1:] > 0)], dtype="boolean"),
    "nullable strings": lambda y: pd.Series([None, *y[1:].astype(str)], dtype="string"),
    "categories": lambda y: pd.Series([None, *y[1:].astype(str)], dtype="category"),
    "dates of pandas": lambda y: pd.Series([None, *pd.to_datetime(y[1:])]),
    "polars": lambda y: pl.Series([None, *y[1:].tolist()]),
    "strings of polars": lambda y: pl.Series([None, *map(str, y[1:])]),
    "booleans of polars": lambda y: pl.Series([None, *(y[1:] > 0).tolist()]),
    "tensor": lambda y: torch.tensor([torch.nan, *y[1:]], dtype=torch.bfloat16),
}


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
@pytest.mark.parametrize("form", MISSING)
def test_missing_targets_are_refused(kind, form):
    X, y = classification()
    model = kind(**QUICK)
    with pytest.raises(ValueError, match="Input y contains NaN"):
        model.fit(X, MISSING[form](y))
    with pytest.raises(ValueError, match="Input y contains NaN"):
        model.partial_fit(X, MISSING[form](y))
    model = kind(**QUICK, early_stopping=True)
    with pytest.raises(ValueError, match="Input y_val contains NaN"):
        model.fit(X, y, X_val=X, y_val=MISSING[form](y))


@pytest.mark.parametrize("unit", ["M8[D]", "M8[ns]", "m8[s]"])
@pytest.mark.parametrize("form", [np.asarray, pd.Series, pl.Series])
def test_dates_are_labels_but_no_numbers(unit, form):
    X, y = rounded()
    if form is pl.Series and unit != "M8[ns]":
        unit = f"{unit[:2]}[ms]"
    dates = y.astype(unit)
    settings = {**QUICK, "early_stopping": True, "validation_fraction": 0.2}
    model = FPEClassifier(**settings, class_weight="balanced").fit(X, form(dates))
    plain = FPEClassifier(**settings, class_weight="balanced").fit(X, y)
    assert_same_bits(plain, model)
    assert model.classes_.dtype.kind == unit[0]
    np.testing.assert_array_equal(model.predict(X), model.classes_[plain.predict(X)])
    for task in (FPERegressor(**QUICK), FPETransformer(**QUICK, task="regression")):
        with pytest.raises(ValueError, match="y must hold real numbers, got dtype"):
            task.fit(X, form(dates))


@pytest.mark.parametrize(
    "dates",
    [
        pd.Series(pd.date_range("2020", periods=60, tz="UTC")),
        pd.Series(pd.period_range("2020", periods=60)),
        [pd.Timestamp("2020").date()] * 60,
    ],
)
@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_dates_that_are_objects_are_refused(kind, dates):
    X, _ = classification()
    with pytest.raises(ValueError, match=r"y must hold .* got objects of type"):
        kind(**QUICK).fit(X, dates)


FRAMES = {
    "dates": pd.DataFrame({"a": pd.date_range("2020", periods=60)}),
    "dates and numbers": pd.DataFrame(
        {"a": pd.date_range("2020", periods=60), "b": np.arange(60.0)}
    ),
    "dates of a time zone": pd.DataFrame(
        {"a": pd.date_range("2020", periods=60, tz="UTC")}
    ),
    "durations": pd.DataFrame({"a": pd.to_timedelta(np.arange(60), unit="s")}),
    "dates of polars": pl.DataFrame({"a": np.arange(60).astype("M8[ms]")}),
    "categories": pd.DataFrame({"a": pd.Categorical(["low"] * 60)}),
    "missing": pd.DataFrame({"a": [pd.NA, *range(59)]}),
}


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
@pytest.mark.parametrize("frame", FRAMES)
def test_columns_that_are_no_numbers(kind, frame):
    _, y = classification()
    with pytest.raises((ValueError, TypeError), match="X must hold real numbers"):
        kind(**QUICK).fit(FRAMES[frame], y)


EMBEDDINGS = {
    "frame": lambda X: pd.DataFrame({"embedding": list(X)}),
    "frame of lists": lambda X: pd.DataFrame({"embedding": X.tolist()}),
    "more columns": lambda X: pd.DataFrame({"length": X[:, 0], "embedding": list(X)}),
    "series": lambda X: pd.Series(list(X)),
    "polars": lambda X: pl.DataFrame({"embedding": X.tolist()}),
    "polars, of one width": lambda X: pl.DataFrame({"embedding": X}),
}


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_columns_of_embeddings_get_a_hint(form):
    X, y = classification()
    model = FPEClassifier(**QUICK).fit(X, y)
    for use in (model.predict, lambda data: model.fit(data, y)):
        with pytest.raises(ValueError, match=r"X must be of shape .* np.stack\(column"):
            use(EMBEDDINGS[form](X))


# --------------------------------------------------------------------------------------
# Masked arrays
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_masked_entries_are_refused(kind):
    X, y = classification()
    plain = kind(**QUICK).fit(X, y, sample_weight=np.ones(60))
    data = {"X": X, "y": y, "sample_weight": np.ones(60)}
    unmasked = {name: np.ma.masked_array(array) for name, array in data.items()}
    assert_same_bits(plain, kind(**QUICK).fit(**unmasked))
    for name, array in data.items():
        masked = np.ma.masked_array(array, np.zeros(array.shape, bool))
        masked[3] = np.ma.masked
        for method in ("fit", "partial_fit"):
            with pytest.raises(ValueError, match=f"{name} must have no masked entries"):
                getattr(kind(**QUICK), method)(**(data | {name: masked}))
        model = kind(**QUICK, early_stopping=True)
        val = {f"{key}_val": value for key, value in (data | {name: masked}).items()}
        with pytest.raises(ValueError, match=f"{name}_val must have no masked entries"):
            model.fit(X, y, **val)
    masked = np.ma.masked_array(X, X > 1)
    with pytest.raises(ValueError, match="X must have no masked entries"):
        plain.transform(masked) if kind is FPETransformer else plain.predict(masked)


def test_missing_values_among_objects_are_found_in_predictions():
    X, y = classification()
    model = FPEClassifier(**QUICK).fit(X, y)
    rows = [[None, *row[1:]] for row in X.tolist()]
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.predict(rows)


# The short way of the checks


CHANGES = {
    "as it is": lambda X: X,
    "float64": lambda X: X.astype(np.float64),
    "column-major": np.asfortranarray,
    "big-endian": lambda X: X.astype(">f4"),
    "float16": lambda X: X.astype(np.float16),
    "long double": lambda X: X.astype(np.longdouble),
    "integers": lambda X: (10 * X).astype(int),
    "complex": lambda X: X + 1j,
    "objects": lambda X: X.astype(object),
    "strings": lambda X: X.astype(str),
    "subclass": lambda X: np.ma.MaskedArray(X, mask=X > 1),
    "no rows": lambda X: X[:0],
    "no columns": lambda X: X[:, :0],
    "fewer columns": lambda X: X[:, 1:],
    "one axis": lambda X: X[0],
    "three axes": lambda X: X[None],
    "NaN": lambda X: np.where(X > 1, np.nan, X),
    "infinity": lambda X: np.where(X > 1, np.inf, X),
}


def answer(predict, X):
    """Return predictions, or type and message of the error, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = predict(X).tolist()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
    return found, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("named", [False, True], ids=["", "named"])
@pytest.mark.parametrize("change", CHANGES)
def test_usual_arrays_are_checked_as_strictly_as_any(change, named, monkeypatch):
    X = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    frame = pd.DataFrame(X, columns=[*"abcd"]) if named else X
    model = FPEClassifier((4,), max_iter=2, random_state=0).fit(frame, X[:, 0] > 0)
    changed = CHANGES[change](X)
    short = answer(model.predict_proba, changed)
    monkeypatch.setattr(_inputs, "_is_usual", lambda estimator, X: False)
    assert answer(model.predict_proba, changed) == short


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_usual_arrays_need_no_other_check(dtype, monkeypatch):
    X = np.random.default_rng(0).standard_normal((30, 4)).astype(dtype)
    model = FPEClassifier((4,), max_iter=2, random_state=0).fit(X, X[:, 0] > 0)
    expected = model.predict_proba(X)
    monkeypatch.delattr(_inputs, "checked_array")
    monkeypatch.delattr(_inputs, "validate_data")
    assert (model.predict_proba(X) == expected).all()
