"""Which device is used, in which precision, and what full memory says."""

import pickle
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pretend_device import NAME

from sklearn_fpe import FPEClassifier
from sklearn_fpe._engine import _rows
from sklearn_fpe._engine._context import training_context
from sklearn_fpe._estimators import _parameters

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 6)).astype(np.float32)
y = RNG.integers(0, 3, 80)
CUDA = torch.device("cuda:1")


def make(**settings):
    common = {"hidden_layer_sizes": (4,), "max_iter": 3, "expansion": 2}
    return FPEClassifier(**{**common, **settings})


@pytest.fixture
def with_cuda(monkeypatch):
    """Let torch say that there is a CUDA device, and that the second one is current."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


# --------------------------------------------------------------------------------------
# device="auto"
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 1000, 2**20])
@pytest.mark.parametrize("n_parameters", [10, 1000, 2**20])
def test_auto_chooses_by_rows_times_parameters(with_cuda, n_rows, n_parameters):
    rows = SimpleNamespace(shape=(n_rows, 5))
    device = _parameters.device_of_fit("auto", rows, n_parameters)
    is_large = n_rows * n_parameters >= _parameters.AUTO_WORK
    assert device == (CUDA if is_large else torch.device("cpu"))


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _parameters.resolve_device("auto") == torch.device("cpu")


def test_a_small_fit_stays_on_the_cpu_and_sets_up_no_gpu(with_cuda, monkeypatch):
    def current_device():
        raise AssertionError("this would set up CUDA")

    monkeypatch.setattr(torch.cuda, "current_device", current_device)
    model = make().fit(X, y)
    assert model.module_.device.type == "cpu"
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded.module_.device.type == "cpu"
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))


def test_a_device_that_is_named_is_used(pretend):
    assert make(device=NAME).fit(X, y).module_.device.type == NAME
    assert make(device="cpu").fit(X, y).module_.device.type == "cpu"


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_a_network_that_is_trained_on_stays_where_it_is(with_cuda, device):
    # The second of several GPUs need not be the current one any more.
    found = _parameters.device_of_fit(device, X, 10, learned=CUDA)
    assert found == CUDA


def test_a_cuda_device_gets_its_number(with_cuda, monkeypatch):
    def zeros(*args, device, **kwargs):
        there = device if device.index is not None else CUDA
        return SimpleNamespace(device=there, cpu=lambda: None)

    monkeypatch.setattr(torch, "zeros", zeros)
    assert _parameters.resolve_device("cuda") == CUDA
    assert _parameters.resolve_device(torch.device("cuda")) == CUDA
    assert _parameters.resolve_device("cuda:0") == torch.device("cuda:0")


def test_partial_fit_keeps_its_device(pretend):
    model = make(device=NAME).partial_fit(X, y)
    model.set_params(device="auto")
    assert model.partial_fit(X, y).module_.device.type == NAME
    model.set_params(device="cpu")
    assert model.partial_fit(X, y).module_.device.type == "cpu"


# --------------------------------------------------------------------------------------
# precision="tf32"
# --------------------------------------------------------------------------------------


def test_tf32_is_float32_on_the_cpu():
    seen = []
    plain = make(random_state=0).fit(X, y)
    model = make(random_state=0, precision="tf32").fit(X, y)
    assert model.loss_curve_ == plain.loss_curve_
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))
    with training_context(torch.device("cpu"), tf32=True):
        seen.append(torch.backends.cuda.matmul.fp32_precision)
    assert seen != ["tf32"]


@pytest.fixture(params=["as it is", "high", "allow_tf32"])
def precision_before(request):
    """Set torch's precision in all its ways; restore it at the end."""
    products = torch.backends.cuda.matmul
    if request.param == "high":
        torch.set_float32_matmul_precision("high")
    elif request.param == "allow_tf32":
        products.allow_tf32 = True
    yield
    products.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def precisions():
    products = torch.backends.cuda.matmul
    return products.fp32_precision, torch.get_float32_matmul_precision()


# torch 2.9 warns of its older functions, which users may call nevertheless.
@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")
@pytest.mark.parametrize("fails", [False, True])
def test_the_precision_is_restored(precision_before, fails):
    device = torch.device("cuda:0")
    before = precisions()

    def compute():
        with training_context(device, tf32=True):
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            compute()
    else:
        compute()
    assert precisions() == before
    with training_context(device):
        assert torch.backends.cuda.matmul.fp32_precision == before[0]


def test_the_last_of_several_threads_restores_the_precision():
    before, device = torch.backends.cuda.matmul.fp32_precision, torch.device("cuda:0")
    barrier, found = threading.Barrier(4), []

    def compute(number):
        with training_context(device, tf32=True):
            barrier.wait()
            found.append(torch.backends.cuda.matmul.fp32_precision)
            barrier.wait()

    threads = [threading.Thread(target=compute, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["tf32"] * 4
    assert torch.backends.cuda.matmul.fp32_precision == before


# --------------------------------------------------------------------------------------
# Memory
# --------------------------------------------------------------------------------------


def full(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_rows_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(_rows.Rows, "read", full)
    with pytest.raises(MemoryError, match=r"rows do not fit.*memory map") as caught:
        make().fit(X, y)
    assert "batch_size" not in str(caught.value)


def test_rows_that_do_not_fit_on_a_device(pretend, monkeypatch):
    monkeypatch.setattr(_rows.Rows, "_standardise", full)
    with pytest.raises(MemoryError, match=r"'pretend(:0)?' ran out.*memory map"):
        make(device=NAME).fit(X, y)


def test_training_that_does_not_fit(monkeypatch):
    from sklearn_fpe._engine._net import Net

    monkeypatch.setattr(Net, "train_step", full)
    with pytest.raises(
        MemoryError, match=r"Lower batch_size \(it is 'auto'\)"
    ) as caught:
        make().fit(X, y)
    assert "memory map" not in str(caught.value)


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_predictions_that_do_not_fit(pretend, method, monkeypatch):
    for device in ("cpu", NAME):
        model = make(device=device).fit(X, y)
        monkeypatch.setattr(model.module_, "forward", full)
        with pytest.raises(MemoryError, match="Predict fewer rows at a time"):
            getattr(model, method)(X)


def test_a_check_that_does_not_fit(pretend, monkeypatch):
    from sklearn_fpe._estimators import _inputs

    rows = torch.from_numpy(X).to(NAME)
    monkeypatch.setattr(_inputs, "_what_is_not_finite", full)
    with pytest.raises(MemoryError, match="Pass X in pieces"):
        make(device=NAME).fit(rows, y)


@pytest.mark.parametrize("kind", ["chunk_bytes", "prediction_bytes"])
def test_pieces_fit_into_the_free_memory_of_a_gpu(monkeypatch, kind):
    from sklearn_fpe._engine import _device

    sizes = []
    for free in (0, 2**29, 2**40):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d, f=free: (f, 2**40))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d: 2**30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 2**30 - 8)
        sizes.append(getattr(_device, kind)(CUDA))
    assert sizes == [2**24, 2**26 + 1, 2**28]
    on_cpu = getattr(_device, kind)(torch.device("cpu"))
    assert on_cpu < 2**24
