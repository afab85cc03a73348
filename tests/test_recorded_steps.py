"""Replayed steps train as launched ones do, to the bit."""

import threading

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tape import Tape, TapeCapture

from sklearn_fpe import FPEClassifier, FPERegressor
from sklearn_fpe._engine import _graph
from sklearn_fpe._engine._net import Net
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS

pytestmark = pytest.mark.filterwarnings("ignore:The outgoing weights of the children")

DIGITS, LABELS = load_digits(return_X_y=True)
X, y = DIGITS[:230].astype(np.float32), LABELS[:230]
GROUPS = np.arange(64) % 4
FAST = [name for name, a in ACTIVATIONS.items() if a.backward_ is not None]


@pytest.fixture
def recording(monkeypatch):
    """Let the CPU record steps; returns the captures that are made."""
    monkeypatch.setitem(_graph.CAPTURES, "cpu", TapeCapture)
    monkeypatch.setattr(_graph, "MIN_RECORDED_STEPS", 4)
    monkeypatch.setattr(TapeCapture, "made", [])
    return TapeCapture.made


def make(kind=FPEClassifier, **settings):
    common = {"hidden_layer_sizes": (8,), "expansion": 2, "max_iter": 8, "warmup": 2}
    common |= {"batch_size": 20, "random_state": 0, "device": "cpu"}
    return kind(**{**common, **settings})


def plain_and_recorded(request, fit):
    plain = fit()
    captures = request.getfixturevalue("recording")
    return plain, fit(), captures


def assert_same(plain, model):
    assert model.loss_curve_ == plain.loss_curve_
    assert model.n_nonzero_ == plain.n_nonzero_
    for a, b in zip(model.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(a.toarray(), b.toarray())
    for a, b in zip(model.intercepts_, plain.intercepts_, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))


def n_replays(captures):
    return sum(capture.n_replays for capture in captures)


def pairs():
    return [
        pytest.param(split, prune, id=f"{split}-{prune}")
        for split in SPLITS
        for prune in PRUNES
        if (SPLITS[split].shared is not False or not PRUNES[prune].needs_shared)
        and (split != "learned" or not PRUNES[prune].at_once)
    ]


@pytest.mark.parametrize(("split", "prune"), pairs())
@pytest.mark.parametrize("skip", [False, True])
def test_every_rule(request, split, prune, skip):
    if skip and not PRUNES[prune].allows_skip:
        pytest.skip("the rule takes no skip connection")
    groups = GROUPS if SPLITS[split].needs_groups else None
    settings = {"split": split, "prune": prune, "skip_connection": skip}

    def fit():
        return make(**settings, feature_groups=groups).fit(X, y)

    plain, model, captures = plain_and_recorded(request, fit)
    assert_same(plain, model)
    # Of 8 epochs of 11 whole batches, 3 steps of each phase are run before recording.
    assert n_replays(captures) >= 8 * 11 - 6 - 23


SETTINGS = {
    "binary": (FPEClassifier, {}, y % 2),
    "several labels": (FPEClassifier, {}, np.stack([y > 4, y % 2], 1) * 1),
    "weighted labels": (
        *(FPEClassifier, {"class_weight": [{1: 3}, {0: 2}]}),
        np.stack([y > 4, y % 2], 1) * 1,
    ),
    "regression": (FPERegressor, {}, X @ np.linspace(-1, 1, 64)),
    "two targets": (FPERegressor, {}, np.stack([X[:, 20], X.sum(1)], axis=1)),
    "label smoothing": (FPEClassifier, {"label_smoothing": 0.1}, y),
    "class weights": (FPEClassifier, {"class_weight": "balanced"}, y),
    "two layers": (FPEClassifier, {"hidden_layer_sizes": (8, 6)}, y),
    "no hidden layer": (
        *(FPEClassifier, {"hidden_layer_sizes": (), "budget": 300, "expansion": 1}),
        y,
    ),
    "expansion 1": (FPEClassifier, {"expansion": 1}, y),
    "early stopping": (FPEClassifier, {"early_stopping": True}, y),
    "constant rate": (FPEClassifier, {"learning_rate": "constant"}, y),
    "whole batches only": (FPEClassifier, {}, y[:220]),
    "one batch": (FPEClassifier, {"batch_size": 500, "max_iter": 20}, y),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting(request, name):
    kind, settings, target = SETTINGS[name]

    def fit():
        return make(kind, **settings).fit(X[: len(target)], target)

    plain, model, captures = plain_and_recorded(request, fit)
    assert_same(plain, model)
    assert n_replays(captures) > 0


def test_losses_of_batches_at_odd_addresses(request):
    # The sum of a product is rounded by the alignment of its operands.
    def fit():
        return make(batch_size=23).fit(X, y)

    plain, model, _ = plain_and_recorded(request, fit)
    np.testing.assert_allclose(model.loss_curve_, plain.loss_curve_, rtol=1e-6)
    for a, b in zip(model.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(a.toarray(), b.toarray())


@pytest.mark.parametrize("activation", FAST)
@pytest.mark.parametrize("prune", ["structured", "gradual"])
def test_every_activation(request, activation, prune):
    def fit():
        return make(activation=activation, prune=prune).fit(X, y)

    plain, model, captures = plain_and_recorded(request, fit)
    assert_same(plain, model)
    assert n_replays(captures) > 0


def test_warm_start(request):
    def fit():
        return make(warm_start=True).fit(X, y).fit(X, y)

    plain, model, _ = plain_and_recorded(request, fit)
    assert_same(plain, model)


def test_what_cannot_be_recorded_is_launched(request, recording, tmp_path):
    from skorch.callbacks import Callback

    make(activation="gelu").fit(X, y)
    make(precision="bfloat16").fit(X, y)
    make(skorch_callbacks=[Callback()]).fit(X, y)
    make().partial_fit(X, y)
    from scipy import sparse

    make().fit(sparse.csr_matrix(X), y)
    make(max_iter=2, warmup=1, batch_size=100).fit(X, y)  # few steps
    assert not recording


def test_recorded_once_a_phase_and_anew_when_masks_begin(recording):
    make(split="contiguous", prune="structured").fit(X, y)
    assert len([c for c in recording if c.recorded]) == 2
    recording.clear()
    make(prune="gradual", max_iter=20).fit(X, y)
    # The warm-up, the wide network, and from the first pruning on.
    counts = [c.n_replays for c in recording if c.recorded]
    assert len(counts) == 3
    assert min(counts) > 10


def test_steps_at_which_a_hook_is_due_are_launched(recording, monkeypatch):
    from sklearn_fpe._engine._pruning import GradualPruning

    acted = []
    real = GradualPruning.before_step

    def before_step(self, trainer):
        acted.append(trainer.step)
        real(self, trainer)

    monkeypatch.setattr(GradualPruning, "before_step", before_step)
    make(prune="gradual", max_iter=20).fit(X, y)
    assert len(acted) > 3
    assert all(step % 20 == 0 for step in acted[:-1])


def test_a_failed_recording_falls_back_with_a_warning(recording, monkeypatch):
    plain = make(prune="structured").fit(X, y)

    def record(self, function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(TapeCapture, "record", record)
    with pytest.warns(UserWarning, match="could not be recorded.*not permitted"):
        model = make(prune="structured").fit(X, y)
    assert_same(plain, model)


def test_one_recording_at_a_time(recording, monkeypatch):
    inside, most = [], []
    real = TapeCapture.record

    def record(self, function):
        inside.append(1)
        most.append(len(inside))
        real(self, function)
        inside.pop()

    monkeypatch.setattr(TapeCapture, "record", record)
    plain = make(prune="structured").fit(X, y)
    models = [make(prune="structured") for _ in range(4)]
    threads = [threading.Thread(target=m.fit, args=(X, y)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 10
    assert max(most) == 1
    for model in models:
        assert_same(plain, model)


def test_a_number_is_baked_in_but_a_tensor_is_not():
    x, rate = torch.ones(3), torch.tensor(2.0)
    number = 2.0
    tape = Tape()
    with tape:
        x.mul_(number)
        x.add_(rate)
    tape.undo()
    assert torch.equal(x, torch.ones(3))
    number, _ = 5.0, rate.fill_(7)
    tape.replay()
    assert torch.equal(x, torch.full((3,), 9.0))


def test_waiting_while_recording_is_an_error(recording):
    with pytest.raises(RuntimeError, match="makes the host wait"), Tape():
        float(torch.ones(2).sum())


def test_the_rate_is_a_tensor_where_steps_are_recorded(recording, monkeypatch):
    rates = []
    real = Net.set_rate

    def set_rate(self, rate):
        real(self, rate)
        (group,) = self.optimizer_.param_groups
        assert isinstance(group["lr"], torch.Tensor)
        assert float(group["lr"]) == rate
        rates.append(rate)

    monkeypatch.setattr(Net, "set_rate", set_rate)
    make(learning_rate="cosine").fit(X, y)
    assert len(set(rates)) == 8


@pytest.mark.gpu
@pytest.mark.parametrize("prune", PRUNES)
def test_cuda_graphs_train_as_launched_steps_do(prune, monkeypatch):
    models = []
    for n_steps in (4, np.inf):
        monkeypatch.setattr(_graph, "MIN_RECORDED_STEPS", n_steps)
        models.append(make(prune=prune, device="cuda").fit(X, y))
    for recorded, launched in zip(*(m.loss_curve_ for m in models), strict=True):
        assert recorded == pytest.approx(launched, rel=1e-3)
