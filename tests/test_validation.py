"""The checks of parameters and arrays by themselves."""

import re
import warnings
from fractions import Fraction
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator

from sklearn_fpe._engine._views import View
from sklearn_fpe._estimators import _inputs, _parameters

# --------------------------------------------------------------------------------------
# Arrays
# --------------------------------------------------------------------------------------


class OnAnotherDevice(torch.Tensor):
    """A tensor that becomes an array only after it was copied to the host."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert device type tensor to numpy")

    __array__ = numpy


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (torch.tensor([0, 1, 2]), "int64"),
        (torch.tensor([0, 1, 2], dtype=torch.uint16), "uint16"),
        (torch.tensor([False, True]), "bool"),
        (torch.tensor([0.5, 1.5], dtype=torch.float16), "float16"),
        (torch.tensor([0.5, 1.5], dtype=torch.bfloat16), "float32"),
        (torch.tensor([0.5, 1.5]).to(torch.float8_e4m3fn), "float32"),
        (torch.tensor([0.5, 1.5]).to(torch.float8_e5m2), "float32"),
        (torch.tensor([[0.5, 1.5]]).double().requires_grad_(), "float64"),
        (torch.tensor([1j, -2j]).conj().imag, "float32"),
        (torch.arange(6)[::2], "int64"),
    ],
)
@pytest.mark.parametrize("away", [False, True])
def test_tensors_come_to_the_host(given, dtype, away):
    expected = given.detach().tolist()
    array = _inputs.to_host(given.as_subclass(OnAnotherDevice) if away else given)
    assert type(array) is np.ndarray
    assert array.dtype == dtype
    assert array.tolist() == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to_sparse_csr(),
        lambda tensor: tensor + 1j,
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_tensors_without_plain_values_are_refused(change):
    tensor = change(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"y_val must be a .*tensor"):
        _inputs.to_host(tensor, "y_val")
    with pytest.raises(ValueError, match=r"X must be a .*tensor"):
        _inputs.check_X(BaseEstimator(), tensor, reset=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for check in (_inputs.to_host, _what_check_X_does):
        with pytest.raises(ValueError, match="got layout nested"):
            check(nested)


def _what_check_X_does(X):
    return _inputs.check_X(BaseEstimator(), X, reset=True)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([True, False], "bool"),
        ([np.True_, False], "bool"),
        ([2**53, 2**53 + 1], "int64"),
        ([np.int8(1), 2], "int64"),
        ([2**63 + 1, 1], "uint64"),
        ([1, 2.5], "float64"),
        ([2**70, 2**70 + 1], "O"),
        ([Fraction(1, 2), 1], "O"),
        (["a", "b"], "O"),
        (["a", 1], "O"),
        ([None, 1], "O"),
        ([], "O"),
    ],
)
def test_objects_of_one_kind_get_its_dtype(values, dtype):
    objects = np.empty(len(values), dtype=object)
    objects[:] = values
    array = _inputs.to_host(objects)
    assert array.dtype == dtype
    assert array.tolist() == values


def test_what_needs_no_conversion_stays_as_it_is(tmp_path):
    matrix = sparse.csr_array(np.eye(3))
    array = np.arange(3)
    assert _inputs.to_host(matrix) is matrix
    assert _inputs.to_host(array) is array
    assert _inputs.to_host(None) is None
    np.save(tmp_path / "y.npy", array)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    assert np.shares_memory(_inputs.to_host(mapped), mapped)


@pytest.mark.parametrize("values", [["a", 1], ["a", np.nan], ("a", True), ["a", None]])
def test_lists_with_strings_are_not_made_strings(values):
    assert _inputs.to_host(values).tolist() == list(values)


def test_strings_of_numpy_are_labels():
    strings = np.array(["b", "a"], dtype=np.dtypes.StringDType())
    y = _inputs.check_y(strings, numeric=False)
    assert y.dtype == object
    assert y.tolist() == ["b", "a"]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ({"b", "a"}, ["a", "b"]),
        (frozenset([2, 1]), [1, 2]),
        ({"b": 1, "a": 2}.keys(), ["a", "b"]),
        (iter("ba"), ["a", "b"]),
        (range(3), [0, 1, 2]),
        (pd.Index([2**53 + 1, 2**53], dtype="Int64"), [2**53, 2**53 + 1]),
        (pd.array([True, False], dtype="boolean"), [False, True]),
        (torch.tensor([2, 0, 2]), [0, 2]),
    ],
)
def test_classes_of_any_form(classes, expected):
    assert _inputs.check_classes(classes).tolist() == expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([None, 1], "classes contains NaN or another missing value.* got None"),
        ([np.nan, "a"], "classes contains NaN or another missing value"),
        ({None, 1}, "classes contains NaN or another missing value"),
        ([0.0, np.nan], "Input classes contains NaN"),
        ([1, "a"], "classes must hold labels that are all .* int and str"),
        ([[0, 1]], r"classes must be labels of shape \(n_classes,\), got .*\(1, 2\)"),
        ([], "0 sample"),
    ],
)
def test_bad_classes(classes, message):
    with pytest.raises(ValueError, match=message):
        _inputs.check_classes(classes)


# --------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("piece", [1, 3, 7, 2**22])
def test_values_of_tensors_are_found_in_any_piece(monkeypatch, dtype, piece):
    monkeypatch.setattr(_inputs, "PIECE", piece)
    X = torch.full((5, 4), torch.finfo(dtype).max, dtype=dtype)  # the sum overflows
    find = _inputs._what_is_not_finite
    for view in (X, X.T, X[::2, 1:]):
        assert find(view) is None
    for row, column in [(0, 0), (3, 2), (4, 3)]:
        for value, name in [(torch.nan, "NaN"), (-torch.inf, "infinity")]:
            bad = X.clone()
            bad[row, column] = value
            assert find(bad) == find(bad.T) == name
    bad[0, 0] = torch.nan
    assert find(bad) == "NaN"


def test_values_of_a_tensor_need_little_memory(monkeypatch):
    monkeypatch.setattr(_inputs, "PIECE", 100)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            outputs = out if isinstance(out, (list, tuple)) else [out]
            tensors = [t for t in outputs if isinstance(t, torch.Tensor)]
            largest.extend(t.numel() for t in tensors if t._base is None)
            return out

    X = torch.full((90, 30), 3e38)
    with Watch():
        assert _inputs._what_is_not_finite(X) is None
    assert max(largest) <= 100
    largest.clear()
    with Watch():
        assert _inputs._what_is_not_finite(X / 1e38) is None
    assert sorted(largest)[-2] == 1  # the quotient, then scalars only


@pytest.mark.gpu
def test_check_of_a_tensor_takes_little_memory_of_the_gpu():
    X = torch.ones(2**18, 2**10, device="cuda")  # 1 GiB
    for value, message in [(1.0, None), (torch.nan, "NaN"), (3e38, None)]:
        X[0] = value
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        assert _inputs._what_is_not_finite(X) == message
        assert torch.cuda.max_memory_allocated() - before <= 2**26


FORMS = {
    "array": np.asarray,
    "longdouble": lambda X: np.asarray(X, dtype=np.longdouble),
    "sparse": sparse.csr_array,
    "tensor": torch.from_numpy,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [1e39, -1e300, 1.7e308])
def test_range_is_that_of_the_type_in_which_values_are_standardised(form, value):
    X = FORMS[form](np.array([[0.0, value], [1.0, 2.0]]))
    estimator = BaseEstimator()
    checked = _inputs.check_X(estimator, X, reset=True)
    assert checked.dtype == X.dtype
    if not isinstance(X, torch.Tensor):
        rows = X.toarray() if sparse.issparse(X) else X
        _inputs.check_values(estimator, View(X), rows)
    with pytest.raises(ValueError, match=r"Input y contains .* too large for float32"):
        _inputs.check_range(X, "y", _inputs.LARGEST)


def test_longdouble_above_float64_is_refused():
    if np.finfo(np.longdouble).max <= np.finfo(np.float64).max:
        pytest.skip("longdouble is float64 here")
    X = np.array([[np.longdouble(10) ** 400, 1]])
    with pytest.raises(ValueError, match="too large for float64"):
        _inputs.check_X(BaseEstimator(), X, reset=True)


def test_bad_X_teaches_an_estimator_nothing():
    estimator = BaseEstimator()
    for X in (
        [[np.nan]],
        np.zeros((3, 2), "M8[s]"),
        [["a"]],
        torch.ones(1, 1) * torch.nan,
    ):
        with pytest.raises(ValueError, match=r"X|numeric"):
            _inputs.check_X(estimator, X, reset=True)
        assert not vars(estimator)


# --------------------------------------------------------------------------------------
# Parameters
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["hpu", "privateuseone", "xla", "meta", "mps:7", ""])
def test_devices_that_are_not_there(device):
    with pytest.raises(ValueError, match="device must be 'auto' or a device that is"):
        _parameters.resolve_device(device)


def test_usable_device():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for device in ("auto", "cpu", torch.device("cpu")):
            assert _parameters.usable_device(device) is device
    with pytest.warns(UserWarning, match=r"'cuda:99'.* set to device='cpu'") as record:
        assert _parameters.usable_device("cuda:99") == "cpu"
    assert [warning.filename for warning in record] == [__file__]


@pytest.mark.parametrize("hidden", [[2**40], [2**63], [2**200], [2**25, 2**25]])
def test_size_that_no_machine_has(hidden):
    message = re.escape(f"got {tuple(hidden)}: with 8 columns of X and 3 outputs")
    with pytest.raises(ValueError, match=f"hidden_layer_sizes must .*{message}"):
        _parameters.check_size([8, *hidden, 3])


def test_size_is_counted_in_parameters(monkeypatch):
    n_parameters = 8 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3
    monkeypatch.setattr(_parameters, "_memory", lambda: 16 * n_parameters)
    _parameters.check_size([8, np.int64(6), 5, 3])
    with pytest.raises(ValueError, match=f"{8 + 1 + n_parameters + 5} parameters"):
        _parameters.check_size([8, 7, 5, 3])


def test_memory_of_the_machine_is_known_or_large():
    assert 2**28 < _parameters._memory() <= 2**47


@pytest.mark.parametrize("form", [str, Path, joblib.Memory])
def test_memory_of_any_form(tmp_path, form):
    given = form(tmp_path / "cache")
    memory = _parameters.as_memory(given)
    assert isinstance(memory, joblib.Memory)
    assert Path(memory.location) == tmp_path / "cache"
    assert (memory is given) == isinstance(given, joblib.Memory)


@pytest.mark.parametrize("form", [str, Path])
def test_memory_that_cannot_be_written(monkeypatch, tmp_path, form):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="memory must be a folder that can be written"):
        _parameters.as_memory(form(tmp_path / "file" / "cache"))
    monkeypatch.setattr(_parameters.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"memory must be .* no permission to write"):
        _parameters.as_memory(form(tmp_path))


@pytest.mark.parametrize(
    "equal",
    [
        [0, 0.0, np.int64(0), np.float32(0), Fraction(0)],
        [0.5, np.float64(0.5), np.float32(0.5), Fraction(1, 2)],
        [True, np.True_],
        ["cosine", np.str_("cosine")],
        [(2, 3), [2, 3], np.array([2, 3]), [np.int64(2), 3.0]],
        [{"a": 1.0}, {np.str_("a"): np.int64(1)}],
        [np.inf, np.float32(np.inf)],
        [None],
    ],
)
def test_equal_parameters_have_one_key(equal):
    assert len({joblib.hash(_parameters.plain(value)) for value in equal}) == 1
    first = equal[0]
    assert _parameters.plain(first) == first


def test_different_parameters_have_different_keys():
    values = [0, 1, 0.1, np.float32(0.1), "0", None, (0,), {"a": 0}]
    assert len({joblib.hash(_parameters.plain(value)) for value in values}) == 8
