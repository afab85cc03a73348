"""fit replaces what was learned at once, or not at all."""

import gc
import itertools
import pickle
import signal
import sys
import threading

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine import _moments, _rows, _trainer
from sklearn_fpe._estimators import _base

QUICK = {
    "hidden_layer_sizes": (6,),
    "expansion": 2,
    "max_iter": 4,
    "warmup": 2,
    "batch_size": 16,
    "random_state": 0,
}
ESTIMATORS = [FPEClassifier, FPERegressor, FPETransformer]
X, Y = make_classification(60, 8, n_informative=6, n_classes=3, random_state=0)


def outputs(model, rows=X):
    if isinstance(model, FPETransformer):
        return model.transform(rows)
    if isinstance(model, FPERegressor):
        return model.predict(rows)
    return model.predict_proba(rows)


def attributes(model):
    """Return all that can be read of a fitted model."""
    names = [n for n in dir(model) if n.endswith("_") and not n.startswith("_")]
    return {name: getattr(model, name) for name in names}


class Unharmed:
    """A context in which an error must leave a model as it is."""

    def __init__(self, model, error, match=None):
        self.model, self.context = model, pytest.raises(error, match=match)

    def __enter__(self):
        self.dictionary = dict(vars(self.model))
        self.bytes = pickle.dumps(self.model)
        self.outputs = outputs(self.model)
        return self.context.__enter__()

    def __exit__(self, *error):
        swallowed = self.context.__exit__(*error)
        assert vars(self.model) == self.dictionary
        assert pickle.dumps(self.model) == self.bytes
        np.testing.assert_array_equal(outputs(self.model), self.outputs)
        return swallowed


# --------------------------------------------------------------------------------------
# Whatever makes it fail
# --------------------------------------------------------------------------------------


BAD_DATA = {
    "NaN": lambda: (np.where(X > 1, np.nan, X), Y),
    "fewer columns, NaN": lambda: (np.where(X > 1, np.nan, X)[:, :5], Y),
    "no rows": lambda: (X[:0], Y[:0]),
    "lengths": lambda: (X[:, :5], Y[:9]),
    "missing y": lambda: (X[:, :5], np.where(Y == 1, np.nan, Y)),
    "y of objects": lambda: (X[:, :5], [object()] * 60),
    "y is None": lambda: (X[:, :5], None),
    "text": lambda: ([["a", "b"]] * 60, Y),
    "spread": lambda: (np.where(X > 1, 1.7e308, -1.7e308), Y),
    "weights": lambda: (X[:, :5], Y + 1, -np.ones(60)),
    "shape of weights": lambda: (X[:, :5], Y + 1, np.ones(59)),
}


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("bad", BAD_DATA)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_data(kind, bad, method):
    model = kind(**QUICK).fit(X, Y)
    X_bad, y_bad, *weights = BAD_DATA[bad]()
    keywords = {"sample_weight": weights[0]} if weights else {}
    with Unharmed(model, (ValueError, TypeError, FloatingPointError)):
        getattr(model, method)(X_bad, y_bad, **keywords)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize(
    "settings",
    [
        {"expansion": 0},
        {"device": "gpu"},
        {"warmup": 9},
        {"budget": 1},
        {"split": "groups"},
        {"split": lambda weight, n, rng: np.zeros(3, int)},
        {"split": lambda weight, n, rng: 1 / 0},
        {"prune": "structured", "split": "random"},
        {"early_stopping": True, "validation_fraction": 0.001},
        {"early_stopping": True, "scoring": "luck"},
        {"early_stopping": True, "scoring": lambda *args: 1 / 0},
        {"refit": True},
        {"memory": "a", "random_state": None},
        {"skorch_callbacks": [1]},
        {"batch_size": 0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_parameters(kind, settings):
    model = kind(**QUICK).fit(X, Y)
    model.set_params(**settings)
    dictionary, expected = dict(vars(model)), outputs(model)
    with pytest.raises((ValueError, TypeError, ZeroDivisionError)):
        model.fit(X[:, :5], Y + 1)
    assert vars(model) == dictionary
    np.testing.assert_array_equal(outputs(model), expected)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_divergence(kind, early_stopping):
    model = kind(**QUICK, activation="identity").fit(X, Y)
    model.set_params(learning_rate_init=1e30, early_stopping=early_stopping)
    with Unharmed(model, FloatingPointError):
        model.fit(X[:, :5], Y > 0)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "place",
    [
        (_moments.Moments, "update"),
        (_rows.Rows, "__init__"),
        (_rows.Rows, "_load"),
        (_trainer.Trainer, "__init__"),
        (_trainer.Trainer, "_expanded"),
        (_trainer.Trainer, "run_epoch"),
        (_trainer.Trainer, "learned"),
        (_base, "settings_of"),
        (_base, "recipe_of"),
    ],
    ids=lambda place: place[1],
)
def test_exhausted_memory_anywhere(monkeypatch, kind, method, place):
    model = kind(**{**QUICK, "warmup": 0}).fit(X, Y)
    if method == "partial_fit":
        if place[1] in ("update", "_expanded"):
            pytest.skip("not called after the split")
        model.partial_fit(X, Y)

    def fail(*args, **kwargs):
        raise MemoryError("none left")

    monkeypatch.setattr(*place, fail)
    if place == (_trainer.Trainer, "__init__") and method == "partial_fit":
        vars(model).pop("_trainer")
    expected = outputs(model)
    with pytest.raises(MemoryError):
        getattr(model, method)(X, Y)
    np.testing.assert_array_equal(outputs(model), expected)
    assert model.n_features_in_ == 8
    monkeypatch.undo()
    # It goes on as if nothing had happened.
    getattr(model, method)(X, Y)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("error", [MemoryError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_error_in_any_step(at_step, kind, error, early_stopping):
    model = kind(**QUICK, early_stopping=early_stopping).fit(X, Y)
    for step in (1, 4, 8, 9, 13, 16):
        at_step(step, error)
        with Unharmed(model, error):
            model.fit(X[:, :5], Y > 0)


def test_error_of_a_callback_of_scikit_learn():
    class Failing:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, **kwargs):
            pass

        def on_fit_task_end(self, estimator, context, **kwargs):
            next(countdown)

    for n_calls in range(6):
        model = FPEClassifier(**QUICK).fit(X, Y)
        countdown = itertools.chain(range(n_calls), map(int, ["stop"]))
        model.set_callbacks(Failing())
        dictionary, expected = dict(vars(model)), outputs(model)
        with pytest.raises(ValueError, match="stop"):
            model.fit(X[:, :5], Y > 0)
        assert {k: v for k, v in vars(model).items() if k in dictionary} == dictionary
        np.testing.assert_array_equal(outputs(model), expected)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_interrupt_at_any_line(kind, method):
    """Interrupt after every few lines of the library, as Ctrl-C may."""
    rows, y = X[:20, :5], Y[:20] > 0
    model = kind(**{**QUICK, "max_iter": 2, "warmup": 1}).fit(X, Y)
    if method == "partial_fit":
        model, rows, y = kind(**QUICK).partial_fit(X, Y), X[:20], Y[:20]
    expected, dictionary = outputs(model), dict(vars(model))
    n_lines = [0]
    limit = [np.inf]

    def trace(frame, event, arg):
        if "sklearn_fpe" not in frame.f_code.co_filename:
            return None
        if event == "line":
            n_lines[0] += 1
            if n_lines[0] == limit[0]:
                raise KeyboardInterrupt
        return trace

    def run():
        n_lines[0] = 0
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            getattr(twin, method)(rows, y)
        finally:
            sys.settrace(before)

    twin = pickle.loads(pickle.dumps(model))
    run()
    total = n_lines[0]
    n_interrupted = 0
    for stop in np.linspace(1, total - 1, 60).astype(int):
        twin, limit[0] = pickle.loads(pickle.dumps(model)), stop
        before = vars(twin).copy()
        try:
            run()
        except KeyboardInterrupt:
            n_interrupted += 1
            after = {k: v for k, v in vars(twin).items() if k != "_trainer"}
            if after == before:
                np.testing.assert_array_equal(outputs(twin), expected)
            else:  # the assignment was done already
                outputs(twin, rows)
    assert n_interrupted >= 55
    assert vars(model) == dictionary


def is_measured():
    """Tell whether coverage measures this process."""
    coverage = sys.modules.get("coverage")
    return coverage is not None and coverage.Coverage.current() is not None


def test_interrupt_by_a_signal_at_any_time():
    if is_measured():
        pytest.skip("an interrupt inside coverage leaves its lock closed for ever")
    model = FPEClassifier(**QUICK).fit(X, Y)
    expected, n_interrupted, errors = outputs(model), 0, np.geterr()
    # Python drops an exception that is raised in a callback of its garbage collector,
    # where hypothesis has one.
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for delay in np.linspace(1e-4, 0.02, 30):
            model.set_params(max_iter=400)
            signal.setitimer(signal.ITIMER_REAL, delay)
            with pytest.raises(KeyboardInterrupt):
                model.fit(X[:, :5], Y > 0)
            n_interrupted += 1
            np.testing.assert_array_equal(outputs(model), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.callbacks.extend(callbacks)
    assert n_interrupted == 30
    assert np.geterr() == errors
    assert torch.is_grad_enabled()


# --------------------------------------------------------------------------------------
# Threads
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_thread_that_predicts_never_meets_half_a_model(kind):
    """Refits change the columns, the classes and the width of the network."""
    settings = [
        (X, Y, {"hidden_layer_sizes": (6,)}),
        (X, Y > 0, {"hidden_layer_sizes": (9, 4)}),
        (X * 50 + 3, Y % 2 + 5, {"hidden_layer_sizes": (4,)}),
    ]
    model = kind(**{**QUICK, "max_iter": 1, "warmup": 0})
    known = []
    for rows, y, change in settings:
        known.append(outputs(model.set_params(**change).fit(rows, y)))
    stop, faults, n_predictions = threading.Event(), [], [0]

    def predict():
        while not stop.is_set():
            found = outputs(model)
            n_predictions[0] += 1
            if not any(
                found.shape == k.shape and np.array_equal(found, k) for k in known
            ):
                faults.append(found)

    def predict_safely():
        try:
            predict()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=predict_safely) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        for rows, y, change in settings:
            model.set_params(**change).fit(rows, y)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert n_predictions[0] > 20


def test_a_thread_that_predicts_while_columns_change():
    model = FPEClassifier(**{**QUICK, "max_iter": 1, "warmup": 0})
    known = {5: outputs(model.fit(X[:, :5], Y), X[:, :5])}
    known[8] = outputs(model.fit(X, Y))
    stop, faults, n_right = threading.Event(), [], [0]

    def predict():
        while not stop.is_set():
            for n, expected in known.items():
                try:
                    found = outputs(model, X[:, :n])
                    np.testing.assert_array_equal(found, expected)
                    n_right[0] += 1
                except ValueError as error:
                    if f"X has {n} features, but FPEClassifier is" not in str(error):
                        faults.append(error)
                except Exception as error:
                    faults.append(error)

    thread = threading.Thread(target=predict)
    thread.start()
    for n in [5, 8] * 15:
        model.fit(X[:, :n], Y)
    stop.set()
    thread.join()
    assert not faults
    assert n_right[0] > 20
