"""Callbacks of scikit-learn and of skorch."""

import io

import numpy as np
import pytest
import skorch.callbacks
import torch
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.datasets import make_classification, make_regression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer

# Pruned at once, so that every epoch of the fine-tuning has the same network.
QUICK = {
    "hidden_layer_sizes": (6,),
    "split": "shared",
    "prune": "magnitude",
    "weight_decay": 0.0,
    "learning_rate_init": 1e-2,
    "expansion": 2,
    "max_iter": 5,
    "warmup": 2,
    "random_state": 0,
}


def classification():
    return make_classification(60, 8, n_informative=6, n_classes=3, random_state=0)


class Recorder:
    """A callback that writes down its calls, and stops tasks of a name if told to."""

    def __init__(self, stop=(), interrupt=None):
        self.calls = []
        self.stop = stop
        self.interrupt = interrupt

    def setup(self, estimator, context):
        self.calls.append("setup")

    def teardown(self, estimator, context):
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
        self.calls.append((context.task_name, "begin"))

    def on_fit_task_end(
        self,
        estimator,
        context,
        *,
        X=None,
        y=None,
        metadata=None,
        fitted_estimator=None,
    ):
        path, parent = context.task_name, context.parent
        if parent is not None and context.task_name == "epoch":
            path = parent.task_name
        self.calls.append((context.task_name, "end"))
        self.seen = X, y, metadata, fitted_estimator
        return path in self.stop

    def count(self, name):
        return self.calls.count((name, "end"))


def run(model, *callbacks, **kwargs):
    X, y = classification()
    return model.set_callbacks(*callbacks).fit(X, y, **kwargs)


def test_tasks_are_fit_then_phases_then_epochs():
    recorder = Recorder()
    run(FPEClassifier(**QUICK), recorder)
    epoch = [("epoch", "begin"), ("epoch", "end")]
    assert recorder.calls == [
        "setup",
        ("fit", "begin"),
        ("warm-up", "begin"),
        *(2 * epoch),
        ("warm-up", "end"),
        ("fine-tune", "begin"),
        *(3 * epoch),
        ("fine-tune", "end"),
        ("fit", "end"),
        "teardown",
    ]


def test_callbacks_change_nothing():
    X, y = classification()
    plain = FPEClassifier(**QUICK).fit(X, y)
    watched = run(
        FPEClassifier(**QUICK), Recorder(), ScoringMonitor(scoring="accuracy")
    )
    assert watched.loss_curve_ == plain.loss_curve_
    np.testing.assert_array_equal(watched.predict_proba(X), plain.predict_proba(X))


def test_warm_start_has_one_phase():
    model = run(FPEClassifier(**QUICK, warm_start=True))
    recorder = Recorder()
    run(model, recorder)
    assert recorder.count("warm-up") == 0
    assert recorder.count("fine-tune") == 1
    assert recorder.count("epoch") == 5


# --------------------------------------------------------------------------------------
# Stopping
# --------------------------------------------------------------------------------------


def test_stop_in_the_warm_up_goes_on_to_the_split():
    model = run(FPEClassifier(**QUICK), Recorder(stop=["warm-up"]))
    assert model.n_iter_ == 1 + 3
    assert model.phase_ == "fine-tune"
    assert model.expansion_ == (2,)
    assert model.n_nonzero_ == model.budget_


def test_stop_in_the_fine_tuning_ends_the_fit():
    model = run(FPEClassifier(**QUICK), Recorder(stop=["fine-tune"]))
    assert model.n_iter_ == 2 + 1
    assert model.phase_ == "fine-tune"


def test_stop_in_both():
    model = run(FPEClassifier(**QUICK), Recorder(stop=["warm-up", "fine-tune"]))
    assert model.n_iter_ == len(model.loss_curve_) == 2


def test_warm_up_that_was_stopped_is_not_cached(tmp_path):
    X, y = classification()
    model = FPEClassifier(**QUICK, memory=str(tmp_path))
    assert run(model, Recorder(stop=["warm-up"])).n_iter_ == 4
    assert model.set_callbacks().fit(X, y).n_iter_ == 5
    assert model.loss_curve_ == FPEClassifier(**QUICK).fit(X, y).loss_curve_
    # Now it is cached, and a callback sees the task without its epochs.
    recorder = Recorder()
    run(model, recorder)
    assert recorder.count("warm-up") == 1
    assert recorder.count("epoch") == 3


# --------------------------------------------------------------------------------------
# What callbacks are told
# --------------------------------------------------------------------------------------


def test_snapshot_predicts_from_raw_input_in_both_phases():
    X, y = classification()
    X = 5 + 0.1 * X
    snapshots = []

    class Snapshots(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            if context.task_name == "epoch":
                assert not hasattr(estimator, "module_")
                snapshots.append((context.parent.task_name, fitted_estimator))

    FPEClassifier(**QUICK).set_callbacks(Snapshots()).fit(X, y)
    for epoch, (phase, snapshot) in enumerate(snapshots):
        assert snapshot.phase_ == phase
        assert snapshot.n_iter_ == len(snapshot.loss_curve_) == epoch + 1
        assert np.isfinite(snapshot.predict_proba(X)).all()
    final = FPEClassifier(**QUICK).fit(X, y)
    np.testing.assert_array_equal(
        snapshots[-1][1].predict_proba(X), final.predict_proba(X)
    )


def test_snapshot_is_the_model_as_if_training_had_ended():
    X, y = classification()
    settings = {**QUICK, "learning_rate": "constant"}
    kept = {}

    class Snapshots(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            if context.task_name == "epoch":
                kept[fitted_estimator.n_iter_] = fitted_estimator

    FPEClassifier(**settings).set_callbacks(Snapshots()).fit(X, y)
    for n_epochs in (3, 4):
        shorter = FPEClassifier(**{**settings, "max_iter": n_epochs}).fit(X, y)
        np.testing.assert_array_equal(
            kept[n_epochs].predict_proba(X), shorter.predict_proba(X)
        )


def test_rows_and_weights_are_those_in_training():
    X, y = classification()
    weights = np.linspace(0, 1, 60)
    weights[10:20] = 0
    recorder = Recorder()
    run(FPEClassifier(**QUICK), recorder, sample_weight=weights)
    used = weights > 0
    np.testing.assert_array_equal(recorder.seen[0], X[used])
    np.testing.assert_array_equal(recorder.seen[1], y[used])
    np.testing.assert_array_equal(recorder.seen[2]["sample_weight"], weights[used])
    run(FPEClassifier(**QUICK, early_stopping=True), recorder)
    assert recorder.seen[0].shape == (54, 8)
    assert recorder.seen[2] is None


def test_scoring_monitor_gives_the_curve():
    X, y = classification()
    monitor = ScoringMonitor(scoring=["accuracy", "neg_log_loss"])
    model = run(FPEClassifier(**{**QUICK, "learning_rate_init": 0.03}), monitor)
    log = monitor.get_logs().data_as_pandas
    assert list(log["task_name"]).count("epoch") == 5
    epochs = log[log["task_name"] == "epoch"]
    assert epochs["neg_log_loss"].iloc[-1] > epochs["neg_log_loss"].iloc[0]
    assert epochs["accuracy"].iloc[-1] == model.score(X, y)


def test_scoring_monitor_is_weighted():
    X, y = classification()
    weights = np.linspace(0.1, 2, 60)
    monitor = ScoringMonitor(scoring="accuracy")
    model = run(FPEClassifier(**QUICK), monitor, sample_weight=weights)
    log = monitor.get_logs().data_as_pandas
    expected = model.score(X, y, sample_weight=weights)
    assert log[log["task_name"] == "fit"]["accuracy"].item() == pytest.approx(expected)


def test_scoring_monitor_of_string_labels_and_of_real_targets():
    X, y = classification()
    monitor = ScoringMonitor(scoring="accuracy")
    labels = np.array(["a", "b", "c"])[y]
    FPEClassifier(**QUICK).set_callbacks(monitor).fit(X, labels)
    assert monitor.get_logs().data_as_pandas["accuracy"].between(0, 1).all()
    X, y = make_regression(60, 8, random_state=0)
    monitor = ScoringMonitor(scoring="r2")
    model = FPERegressor(**QUICK).set_callbacks(monitor).fit(X, 1e6 + 1e3 * y)
    log = monitor.get_logs().data_as_pandas
    last = log[log["task_name"] == "fit"]["r2"].item()
    assert last == pytest.approx(model.score(X, 1e6 + 1e3 * y))


def test_scoring_monitor_in_a_search():
    X, y = classification()
    monitor = ScoringMonitor(scoring="accuracy")
    search = GridSearchCV(
        FPEClassifier(**QUICK).set_callbacks(monitor),
        {"expansion": [1, 2]},
        cv=2,
        n_jobs=2,
    ).fit(X, y)
    log = monitor.get_logs().data_as_pandas
    # Two candidates, two folds and the last fit, of five epochs each.
    assert list(log["task_name"]).count("epoch") == 25
    assert search.best_estimator_.n_iter_ == 5


# --------------------------------------------------------------------------------------
# Progress
# --------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """What progress bars print."""
    rich = pytest.importorskip("rich")
    console = rich.console.Console(file=io.StringIO(), width=200, force_terminal=True)
    monkeypatch.setattr(rich, "_console", console)
    return console.file


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_progress_of_an_estimator(shown, kind):
    run(kind(**QUICK), ProgressBar())
    text = shown.getvalue()
    for task in ("fit", "warm-up #0", "fine-tune #1"):
        assert f"{kind.__name__} - {task}" in text
    assert "100%" in text


def test_progress_of_a_pipeline(shown):
    run(make_pipeline(StandardScaler(), FPEClassifier(**QUICK)), ProgressBar())
    assert "FPEClassifier - fit" in shown.getvalue()
    assert "fine-tune #1" in shown.getvalue()


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize(("depth", "is_shown"), [(0, False), (1, False), (2, True)])
def test_progress_of_a_search_over_a_pipeline(shown, depth, is_shown, n_jobs):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), FPEClassifier(**QUICK)),
        {"fpeclassifier__expansion": [1, 2]},
        cv=2,
        n_jobs=n_jobs,
    )
    run(search, ProgressBar(max_propagation_depth=depth))
    assert "GridSearchCV - fit" in shown.getvalue()
    assert ("fine-tune #1" in shown.getvalue()) == is_shown


def test_progress_of_a_search(shown):
    search = GridSearchCV(FPEClassifier(**QUICK), {"expansion": [1, 2]}, cv=2, n_jobs=2)
    run(search, ProgressBar())
    assert "FPEClassifier - fit" in shown.getvalue()


def test_nothing_is_shown_unasked(shown, capsys):
    run(FPEClassifier(**QUICK))
    assert shown.getvalue() == ""
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


# --------------------------------------------------------------------------------------
# skorch
# --------------------------------------------------------------------------------------


class SkorchRecorder(skorch.callbacks.Callback):
    """Writes down its calls in a list that copies share."""

    calls: list = []  # noqa: RUF012
    stop_at = None

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def on_train_begin(self, net, **kwargs):
        self.calls.append("train begin")

    def on_train_end(self, net, **kwargs):
        self.calls.append("train end")

    def on_batch_end(self, net, batch=None, training=None, loss=None, **kwargs):
        assert isinstance(float(loss), float)
        self.calls.append("batch")

    def on_epoch_end(self, net, **kwargs):
        self.calls.append(net.history[-1, "train_loss"])
        if len(net.history) == self.stop_at:
            raise KeyboardInterrupt  # this is skorch's way to ask for a stop


@pytest.fixture
def calls():
    SkorchRecorder.calls.clear()
    return SkorchRecorder.calls


def test_skorch_callbacks_are_called(calls):
    X, y = classification()
    plain = FPEClassifier(**QUICK).fit(X, y)
    model = FPEClassifier(**QUICK, skorch_callbacks=[SkorchRecorder()]).fit(X, y)
    assert calls[0] == "train begin"
    assert calls[-1] == "train end"
    assert calls.count("batch") == 5 * 4
    assert [call for call in calls if isinstance(call, float)] == pytest.approx(
        model.loss_curve_
    )
    # With callbacks, gradients come of autograd: sums are taken in another order.
    np.testing.assert_allclose(
        model.predict_proba(X), plain.predict_proba(X), atol=1e-4
    )


def test_skorch_callback_that_stops_the_warm_up_goes_on_to_the_split(calls):
    X, y = classification()
    callbacks = [SkorchRecorder(stop_at=1)]
    model = FPEClassifier(**QUICK, skorch_callbacks=callbacks).fit(X, y)
    # Every phase is a training of its own, with a history of its own.
    assert model.n_iter_ == 1 + 1
    assert model.phase_ == "fine-tune"
    model.set_params(skorch_callbacks=[SkorchRecorder(stop_at=2)]).fit(X, y)
    assert model.n_iter_ == 2 + 2
    # The callbacks that were passed are as they were.
    assert callbacks[0].stop_at == 1


def test_skorch_callbacks_in_partial_fit(calls):
    X, y = classification()
    model = FPEClassifier(**QUICK, skorch_callbacks=[SkorchRecorder()])
    for _ in range(3):
        model.partial_fit(X, y)
    assert calls.count("train begin") == calls.count("train end") == 3
    model.set_params(skorch_callbacks=None).partial_fit(X, y)
    assert calls.count("train begin") == 3
    model.set_params(skorch_callbacks=[SkorchRecorder()]).partial_fit(X, y)
    assert calls.count("train begin") == 4


def test_skorch_callback_that_clips_gradients():
    X, y = classification()
    clipping = skorch.callbacks.GradientNormClipping(1e-20)
    model = FPEClassifier(**QUICK, skorch_callbacks=[clipping]).fit(X, y)
    # Steps are so small that the biases stay at zero.
    assert torch.allclose(model.module_.layers[-1].bias, torch.zeros(3), atol=1e-6)
