"""What costs time on a GPU, counted on the pretend accelerator."""

import numpy as np
import pytest
import torch
from pretend_device import NAME, counting

from sklearn_fpe import FPEClassifier, FPERegressor
from sklearn_fpe._engine import _device

pytestmark = pytest.mark.filterwarnings("ignore:The outgoing weights of the children")

N_ROWS, N_COLUMNS, N_CLASSES = 640, 64, 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N_ROWS, N_COLUMNS)).astype(np.float32)
y = RNG.integers(0, N_CLASSES, N_ROWS)
BATCH = 64


@pytest.fixture(autouse=True)
def device(pretend):
    return pretend


def make(kind=FPEClassifier, **settings):
    common = {"hidden_layer_sizes": (8,), "warmup": 1, "batch_size": BATCH}
    common |= {"random_state": 0, "device": NAME, "learning_rate": "constant"}
    return kind(**{**common, **settings})


def counts_of_fit(n_epochs, *, rows=X, targets=y, **settings):
    with counting() as counts:
        make(max_iter=n_epochs, **settings).fit(rows, targets)
    return counts


MODELS = {
    "default": {},
    "expansion 1": {"expansion": 1},
    "structured": {"split": "contiguous", "prune": "structured"},
    "shared": {"split": "shared", "prune": "structured"},
    "magnitude": {"split": "random", "prune": "magnitude"},
    "skip connection": {"skip_connection": True},
    "two layers": {"hidden_layer_sizes": (8, 6), "prune": "magnitude"},
    "no hidden layer": {"hidden_layer_sizes": (), "budget": 900, "expansion": 1},
    "constant batches": {"batch_size": 160},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_makes_the_host_wait_for_nothing(name):
    few = counts_of_fit(12, **MODELS[name])
    many = counts_of_fit(12, **{**MODELS[name], "batch_size": BATCH // 4})
    # As many waits, whatever the number of steps. The last pruning goes on until the
    # budget holds; how often it looks depends on the weights.
    assert abs(many.n_waits - few.n_waits) <= (20 if "prune" not in MODELS[name] else 0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_epoch_makes_the_host_wait_at_most_twice(name, early_stopping):
    settings = {**MODELS[name], "early_stopping": early_stopping}
    settings.setdefault("prune", "magnitude")  # ends at once
    if early_stopping:
        settings["n_iter_no_change"] = np.inf
    waits = [counts_of_fit(n, **settings).n_waits for n in (4, 14)]
    assert waits[1] - waits[0] == (20 if early_stopping else 10)


@pytest.mark.parametrize("scoring", [None, "loss"])
def test_validation_copies_what_the_score_needs(scoring):
    settings = {"early_stopping": True, "prune": "magnitude", "scoring": scoring}
    downloads = []
    for n_epochs in (4, 5):
        counts = counts_of_fit(n_epochs, validation_fraction=0.5, **settings)
        downloads.append(sum(counts.downloads.values()))
    # Class numbers of 320 rows and two numbers, or two numbers; and losses of batches.
    expected = 8 * (320 + 2) if scoring is None else 16
    assert downloads[1] - downloads[0] == expected + 4 * 5


def test_gradual_pruning_waits_for_nothing_between_begin_and_end(monkeypatch):
    from sklearn_fpe._engine import _pruning

    waits = []
    real = _pruning.prune_to

    def prune_to(*args):
        with counting() as counts:
            real(*args)
        waits.append(counts.n_waits)

    monkeypatch.setattr(_pruning, "prune_to", prune_to)
    counts_of_fit(20)
    counts_of_fit(20, skip_connection=True)
    assert len(waits) > 6
    assert not any(waits)


STEPS = {
    "expansion 1": 18,
    "magnitude": 19,
    "structured": 23,
    "shared": 23,
    "default": 19,
    "skip connection": 21,
}
"""Launches of a step, the selection of its rows included."""


@pytest.mark.parametrize("name", STEPS)
def test_launches_of_a_step(name, monkeypatch):
    from sklearn_fpe._engine._net import Net

    launches, real = [], Net.train_step

    def train_step(self, batch, **kwargs):
        with counting() as counts:
            step = real(self, batch, **kwargs)
        assert counts.n_waits == 0 or (
            self.before_step and self.before_step.trainer.step
        )
        launches.append(counts.n_launches)
        return step

    monkeypatch.setattr(Net, "train_step", train_step)
    counts_of_fit(10, **MODELS[name])
    # One more selects the rows. Most steps prune nothing.
    assert np.median(launches[20:]) + 1 <= STEPS[name]


def test_launches_for_an_epoch_beside_its_steps():
    few, many = (counts_of_fit(n, prune="magnitude").n_launches for n in (4, 14))
    assert many - few <= 10 * (10 * STEPS["magnitude"] + 20)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba"])
@pytest.mark.parametrize("where", ["cpu", NAME])
def test_predictions_wait_once_for_a_piece(method, where, monkeypatch):
    model = make(max_iter=2).fit(X, y)
    rows = torch.from_numpy(X).to(where) if where == NAME else X
    getattr(model, method)(rows)
    waits = []
    for n_pieces in (1, 4):
        width = sum(layer.in_features for layer in model.module_.layers)
        n_bytes = 4 * width * (N_ROWS // n_pieces)
        monkeypatch.setattr(_device, "LARGE_PREDICTION_BYTES", n_bytes)
        with counting() as counts:
            getattr(model, method)(rows)
        waits.append(counts.n_waits)
    assert waits[1] - waits[0] == 3
    assert waits[0] <= 3  # is a tensor finite, the result, are the outputs finite
    if method == "predict":
        assert sum(counts.downloads.values()) <= 8 * N_ROWS + 8


def test_float64_follows_where_float32_overflows():
    settings = {"max_iter": 3, "standardize": False}
    targets = X[:, 0] * 1e-3
    model = make(FPERegressor, **settings).fit(X * 1e-3, targets)
    plain = make(FPERegressor, device="cpu", **settings).fit(X * 1e-3, targets)
    large = (X * 1e37).astype(np.float32)
    np.testing.assert_array_equal(model.predict(large), plain.predict(large))
    assert np.isfinite(model.predict(large)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_rows_are_found_while_they_are_read(value):
    from sklearn import config_context

    model = make(max_iter=2).fit(X, y)
    bad = X.copy()
    bad[-1, -1] = value
    with pytest.raises(ValueError, match="Input X contains"):
        model.predict(bad)
    with (
        config_context(assume_finite=True),
        pytest.raises(ValueError, match="overflow"),
    ):
        model.predict(bad)


def test_calls_of_partial_fit_wait_seldom():
    model = make(warmup=2, prune="magnitude", max_iter=10)
    for _ in range(4):
        model.partial_fit(X[:64], y[:64] % 10, classes=np.arange(10))
    with counting() as counts:
        model.partial_fit(X[:64], y[:64] % 10)
    assert counts.n_waits <= 12
