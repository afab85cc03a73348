"""One fit on several processes is the fit of one process on all rows."""

import pickle
import re

import numpy as np
import pytest
import torch.distributed as dist
from distributed_cases import (
    SHORT_TIMEOUT,
    SMALL,
    TIMEOUT,
    fit_law,
    laws,
    run_processes,
    small_batches,
)
from sklearn.base import clone

import sklearn_fpe
from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this build of torch has no gloo",
)


def test_two_processes(tmp_path, subtests):
    found = run_processes("two", 2, tmp_path)
    for name in laws():
        with subtests.test("law", case=name):
            check_law(name, [of_process["run_laws"][name] for of_process in found])
    checks = [
        *(check_small_batches, check_missing_classes, check_few_rows),
        *(check_early_stopping, check_partial_fit, check_memory_map),
        *(check_own_seeds, check_autograd, check_failures),
    ]
    for check in checks:
        name = check.__name__.removeprefix("check_")
        with subtests.test("other fits", case=name):
            check([of_process[name] for of_process in found])


def test_three_processes(tmp_path, subtests):
    found = run_processes("three", 3, tmp_path)
    assert found[-1] is None  # it was killed
    for check in (check_few_rows, check_failures, check_killed):
        name = check.__name__.removeprefix("check_")
        with subtests.test("three processes", case=name):
            check([of_process[name] for of_process in found[:-1]])


def assert_same_model(found, forms=("digest", "pickle")):
    for form in forms:
        assert len({of_process[form] for of_process in found}) == 1


def check_law(name, found):
    assert_same_model(found)
    one, many = fit_law(laws()[name]), found[0]
    assert many["n_nonzero"] == one["n_nonzero"] <= one["budget"]
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=0, atol=1e-5)
    arrays = [(many[key], one[key]) for key in ("coefs", "intercepts")]
    pairs = [pair for many, one in arrays for pair in zip(many, one, strict=True)]
    if one["skip"] is not None:
        pairs.append((many["skip"], one["skip"]))
    for array, expected in pairs:
        # Coefficients are in the units of X and y, which differ by powers of ten.
        scale = np.abs(expected).max(axis=-1, keepdims=True)
        assert (np.abs(array - expected) <= 1e-5 * np.maximum(scale, 1e-30)).all()


def check_small_batches(found):
    one = [fit["score"] for fit in small_batches(0, 1).values()]
    for seed in found[0]:
        assert_same_model([of_process[seed] for of_process in found])
    many = [fit["score"] for fit in found[0].values()]
    spread = max(np.std(one), np.std(many))
    assert abs(np.mean(many) - np.mean(one)) <= 2 * spread + 0.005


def check_missing_classes(found):
    assert_same_model(found)
    np.testing.assert_array_equal(found[0]["classes"], np.arange(10))
    assert all(len(of_process["seen"]) < 10 for of_process in found)
    assert found[0]["score"] > 0.9


def check_few_rows(found):
    assert_same_model(found)
    assert len({of_process["n_steps"] for of_process in found}) == 1
    for of_process in found:
        # One all-reduce a step, of the parameters before the split or after it.
        assert of_process["n_reduced"] == of_process["n_steps"]
        assert of_process["n_lengths"] == 2
    assert found[0]["score"] > 0.8


def check_early_stopping(found):
    for name, fit in found[0].items():
        assert_same_model([of_process[name] for of_process in found])
        assert fit["best"] == max(fit["scores"])
        if name in ("accuracy", "r2"):  # those of all rows that were held out
            assert fit["best"] == pytest.approx(fit["score"], abs=1e-6)
        if name == "loss":
            assert fit["scores"] == [-loss for loss in fit["validation_losses"]]
    assert min(fit["n_iter"] for fit in found[0].values()) < 12


def check_partial_fit(found):
    for name in ("calls", "warm start"):
        # One of the models was pickled before; its strings are other objects.
        assert_same_model([of_process[name] for of_process in found], ["digest"])
        assert found[0][name]["score"] > 0.85


def check_memory_map(found):
    for fit in found[0]:
        assert_same_model([of_process[fit] for of_process in found])
        assert found[0][fit]["score"] > (0.9 if fit[1] == 50 else 0.5)
    for array, expected in zip(
        found[0]["map", 10**6]["coefs"],
        found[0]["array", 10**6]["coefs"],
        strict=True,
    ):
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5)


def check_own_seeds(found):
    for fit in ("first", "second"):
        assert_same_model([of_process[fit] for of_process in found])
    assert found[0]["first"]["digest"] != found[0]["second"]["digest"]


def check_autograd(found):
    assert_same_model(found)
    assert found[0]["score"] > 0.5


def check_failures(found):
    for of_process in found:
        alike = {
            "columns": "number of columns of X differs: process 0 has 64, process ",
            "parameter": r"parameter expansion differs: process 0 has 4, process \d ",
            "labels": "y must hold labels of one kind in all processes",
            "argument": "argument X_val differs: process 0 has False",
        }
        for name, message in alike.items():
            assert_raised(of_process[name], ValueError, message)
        different = {
            "data": (ValueError, "Input X contains NaN"),
            "step": (OSError, "the disk is gone"),
            "interrupt": (KeyboardInterrupt, ""),
        }
        for name, (kind, message) in different.items():
            if not of_process["failed"]:
                message = rf"because process \d failed: {kind.__name__}.*{message}"
                kind = RuntimeError
            assert_raised(of_process[name], kind, message)
        assert_raised(of_process["step"], (OSError, RuntimeError), "disk is gone")
        assert of_process["model is as it was"]
        assert of_process["again"]
        assert of_process["after a failure of one"]


def check_killed(found):
    for of_process in found:
        message = (
            r"gradients were added \(fine-tune, epoch \d+, step \d+\), because the"
        )
        message += " connection to another process was lost: it was killed"
        assert_raised(of_process["in a step"], RuntimeError, message)
        message = "the processes met .*because another process did not answer in time"
        assert_raised(of_process["again"], RuntimeError, message, SHORT_TIMEOUT * 10)
        assert not of_process["is fitted"]


def assert_raised(error, kind, message, seconds=TIMEOUT / 2):
    error_type, text, duration = error
    assert error_type is not None, f"no error, expected {message}"
    assert issubclass(error_type, kind), (error_type, text)
    assert re.search(message, text), text
    assert duration < seconds


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_a_process_without_a_group_is_told_how_to_make_one(kind, monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    model = kind(**SMALL, distributed=True)
    with pytest.raises(ValueError, match=r"torchrun.*lacks .*MASTER_PORT"):
        model.fit(np.eye(9), np.arange(9) % 3)


@pytest.fixture
def group_of_one(tmp_path):
    url = (tmp_path / "rendezvous").resolve().as_uri()
    dist.init_process_group("gloo", init_method=url, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_of_one_process_is_no_group(group_of_one):
    X, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    settings = {"hidden_layer_sizes": (4,), "max_iter": 4, "random_state": 0}
    one = FPEClassifier(**settings).fit(X, y)
    many = FPEClassifier(**settings, distributed=True).fit(X, y)
    assert many.loss_curve_ == one.loss_curve_
    assert many.predict_proba(X).tobytes() == one.predict_proba(X).tobytes()


def test_the_parameter_is_cloned_stored_and_loaded(group_of_one, tmp_path):
    X, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    model = FPEClassifier((4,), max_iter=2, distributed=True).fit(X, y)
    path = tmp_path / "model.safetensors"
    sklearn_fpe.save(model, path)
    copies = [sklearn_fpe.load(path), pickle.loads(pickle.dumps(model))]
    for copy in (*copies, clone(model)):
        assert copy.distributed is True
    for copy in copies:
        np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skorch_callbacks": [("a", None)]}, "does not support skorch_callbacks"),
        ({"memory": "cache", "random_state": 0}, "does not support memory"),
    ],
)
def test_what_acts_on_one_process_is_refused(settings, message, group_of_one):
    model = FPEClassifier(distributed=True, **settings)
    with pytest.raises(ValueError, match=message):
        model.fit(np.eye(9), np.arange(9) % 3)
