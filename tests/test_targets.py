"""Targets by themselves: classes, encoding, weights."""

import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import make_multilabel_classification
from sklearn.utils import compute_class_weight, compute_sample_weight

from sklearn_fpe import FPEClassifier, FPERegressor
from sklearn_fpe._engine._world import SINGLE
from sklearn_fpe._estimators._class_weights import weights_by_column
from sklearn_fpe._estimators._inputs import check_y
from sklearn_fpe._estimators._real_targets import RealTargets, r2
from sklearn_fpe._estimators._targets import ClassTargets
from sklearn_fpe.nn import Affine

QUICK = {"hidden_layer_sizes": (4,), "expansion": 2, "max_iter": 2, "random_state": 0}


def learned(y, class_weight=None, weights=None, **kwargs):
    targets = ClassTargets(class_weight)
    y = check_y(y, numeric=False)
    weights = np.ones(y.shape[0]) if weights is None else weights
    return targets, targets.check(y, weights, learn=True, **kwargs)


# --------------------------------------------------------------------------------------
# Classes
# --------------------------------------------------------------------------------------

LARGE = [2**53, 2**53 + 1, 2**60 + 1]


@pytest.mark.parametrize("first", [np.int64, np.uint64])
@pytest.mark.parametrize("then", [np.int64, np.uint64, object])
def test_large_integers_stay_distinct(first, then):
    targets, _ = learned(np.array(LARGE, dtype=first))
    assert targets.classes.tolist() == LARGE
    y = check_y(np.array(LARGE[::-1], dtype=then), numeric=False)
    y = targets.check(y, np.ones(3), learn=False)
    assert targets.encode(y).tolist() == [2, 1, 0]
    unknown = check_y(np.array([2**53 + 2], dtype=then), numeric=False)
    with pytest.raises(ValueError, match="y must hold only the classes"):
        targets.check(unknown, np.ones(1), learn=False)


@pytest.mark.parametrize(
    ("classes", "y", "codes"),
    [
        ([0, 1], [1.0, 0.0], [1, 0]),
        ([0.0, 1.0], [1, 0], [1, 0]),
        ([False, True], [1, 0], [1, 0]),
        ([0, 1], [True, False], [1, 0]),
        (np.array([1, 2], np.uint8), [2, 1], [1, 0]),
        (["a", "b"], np.array(["b", "a"], object), [1, 0]),
    ],
)
def test_equal_labels_of_another_type_are_known(classes, y, codes):
    targets, _ = learned(classes)
    y = targets.check(check_y(y, numeric=False), np.ones(2), learn=False)
    assert targets.encode(y)[:, 0].tolist() == codes


@pytest.mark.parametrize(
    ("classes", "y"),
    [
        ([1, 2], ["1", "2"]),
        (["1", "2"], [1, 2]),
        ([False, True], [0, 2]),
        (np.array([1, 2], np.uint64), [-1, 1]),
        ([1, 2], np.array([1, 2], "M8[D]")),
        (np.array([1, 2], "M8[D]"), [1, 2]),
        (np.array([1, 2], "M8[D]"), np.array([1, 2], "m8[D]")),
        (np.array([2**53, 2**53 + 1]), [2.0**53 + 2, 2.0**53]),
    ],
)
def test_other_labels_are_unknown(classes, y):
    targets, _ = learned(classes)
    with pytest.raises(ValueError, match="y must hold only the classes"):
        targets.check(check_y(y, numeric=False), np.ones(2), learn=False)


@pytest.mark.parametrize("classes", [{"c", "a", "b"}, ["a", "b", "c", "a"]])
def test_classes_of_partial_fit(classes):
    X = np.arange(32.0).reshape(4, 8)
    y = ["a", "b", "a", "b"]
    model = FPEClassifier(**QUICK).partial_fit(X, y, classes=classes)
    assert model.classes_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="Input classes contains NaN or another"):
        FPEClassifier(**QUICK).partial_fit(X, [0, 1, 0, 1], classes=[None, 1])


def test_warm_start_keeps_classes_that_y_lacks():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 4)), np.arange(30) % 3
    model = FPEClassifier(**QUICK, warm_start=True).fit(X, y)
    model.fit(X[y < 2], y[y < 2])
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.predict_proba(X).shape == (30, 3)
    with pytest.raises(ValueError, match="y must hold only the classes"):
        model.fit(X, y + 1)


# --------------------------------------------------------------------------------------
# Weights of the entries of an indicator matrix
# --------------------------------------------------------------------------------------


def indicators():
    return make_multilabel_classification(50, 4, n_classes=3, random_state=0)[1]


def test_no_class_weight_gives_no_entry_weights():
    targets, Y = learned(indicators())
    assert targets.entry_weights(Y, np.ones(50)) is None
    targets, y = learned([0, 1, 2], "balanced")
    assert targets.entry_weights(y, np.ones(3)) is None


@pytest.mark.parametrize(
    "class_weight",
    [
        [{0: 1, 1: 3}, {0: 0.5}, {1: 0}],
        [{0: 1, 1: 3}, {0: 0.5, 1: 1}, {0: 1, 1: 0}],
        {0: {1: 3}, 1: {0: 0.5}, 2: {1: 0}},
        {np.int64(0): {True: 3}, 1: {False: 0.5}, 2: {1: 0}},
    ],
)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, lambda Y: Y > 0])
def test_weights_are_those_of_the_entries(class_weight, form):
    targets, Y = learned(form(indicators()), class_weight)
    weights = targets.entry_weights(Y, np.ones(50))
    assert weights.dtype == np.float32
    Y = indicators()
    expected = np.where(Y == 1, [3, 1, 0], [1, 0.5, 1])
    np.testing.assert_array_equal(weights, expected)
    table = weights_by_column(class_weight, Y, np.ones(50), SINGLE)
    assert table.tolist() == [[1, 3], [0.5, 1], [1, 0]]


def test_a_column_by_itself_is_weighted_as_scikit_learn_weights_it():
    Y, class_weight = indicators(), [{0: 1, 1: 3}, {0: 0.5, 1: 1}, {0: 2, 1: 5}]
    for given in ("balanced", class_weight):
        targets, _ = learned(Y, given)
        weights = targets.entry_weights(Y, np.ones(50))
        for column in range(3):
            of_column = given if given == "balanced" else given[column]
            np.testing.assert_allclose(
                weights[:, column], compute_sample_weight(of_column, Y[:, column])
            )
        # scikit-learn gives a row the product of what its entries weigh.
        np.testing.assert_allclose(
            weights.prod(axis=1), compute_sample_weight(given, Y), rtol=1e-6
        )


def test_balanced_counts_sample_weights():
    Y, rows = indicators(), np.random.default_rng(0).integers(0, 4, 50)
    weights = weights_by_column("balanced", Y, rows.astype(float), SINGLE)
    repeated = np.repeat(Y, rows, axis=0)
    for column in range(3):
        expected = compute_class_weight(
            "balanced", classes=np.arange(2), y=repeated[:, column]
        )
        np.testing.assert_allclose(weights[column], expected)


def test_balanced_column_of_one_class_has_weight_one():
    Y = indicators()
    Y[:, 1] = 1
    Y[:, 2] = 0
    weights = np.full(50, 0.1)
    targets, _ = learned(Y, "balanced")
    assert (targets.entry_weights(Y, weights)[:, 1:] == 1).all()


def test_weighted_loss_is_that_of_repeated_entries():
    """What `entry_weights` says of the loss: the minimum is that of single columns."""
    Y = indicators()
    targets, _ = learned(Y, [{0: 1, 1: 3}, {0: 2}, {1: 4}])
    rows = np.random.default_rng(0).integers(1, 4, 50).astype(float)
    W = rows[:, None] * targets.entry_weights(Y, rows)
    logits = torch.zeros(3, requires_grad=True)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.expand(50, 3), targets.encode(Y), reduction="none"
    )
    loss = (torch.from_numpy(W / W.mean()).float() * losses).sum() / 50
    assert loss.item() == pytest.approx(3 * np.log(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    for column, (zero, one) in enumerate([(1, 3), (2, 1), (1, 4)]):
        repeats = (rows * np.where(Y[:, column], one, zero)).astype(int)
        repeated = np.repeat(Y[:, column], repeats)
        expected = (0.5 - repeated).sum() / W.mean() / 50
        assert gradient[column].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ([{0: 1}] * 2, "class_weight must be 'balanced', a list of 3 dicts"),
        ([{0: 1}] * 4, "class_weight must be 'balanced', a list of 3 dicts"),
        ([1, 2, 3], "class_weight must be 'balanced', a list of 3 dicts"),
        ({0: 1.0, 1: 5.0}, "class_weight must be 'balanced', a list of 3 dicts"),
        ({3: {1: 2.0}}, "class_weight must name columns of y from 0 to 2, got 3"),
        ({"a": {1: 2.0}}, "class_weight must name columns of y from 0 to 2, got 'a'"),
        ([{2: 1}] * 3, "class_weight must map 0 and 1 .* got the key 2 in column 0"),
        ([{1: -1}] * 3, "class_weight must be finite and not negative, got -1 for 1"),
        ([{1: np.inf}] * 3, "class_weight must be finite and not negative"),
        ([{1: np.ones(2)}] * 3, r"must map every label to a number, got array.* for 1"),
        ([{0: 0, 1: 0}] * 3, "class_weight must be positive for an entry of y"),
    ],
)
def test_bad_entry_weights(class_weight, message):
    targets, Y = learned(indicators(), class_weight)
    with pytest.raises(ValueError, match=message):
        targets.entry_weights(Y, np.ones(50))


def test_list_of_class_weights_is_for_several_labels_only():
    targets, y = learned([0, 1, 2], [{0: 1.0}])
    with pytest.raises(ValueError, match="class_weight must be a dict from label"):
        targets.row_weights(y, np.ones(3))


# --------------------------------------------------------------------------------------
# Real targets
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [[1e300, -1e300], np.array([1e39, 0.0])])
def test_range_of_real_targets_can_be_that_of_float64(y):
    checked = RealTargets().check(np.asarray(y), np.ones(2), learn=True)
    assert checked.tolist() == list(y)


def test_targets_far_from_those_learned_are_an_error_without_a_warning():
    targets = RealTargets()
    targets.check(np.zeros(2), np.ones(2), learn=True)
    targets.affine = Affine(np.array([-1.7e308]), np.array([1.0]))
    with pytest.raises(ValueError, match=r"standard deviations .* got inf"):
        targets.encode(np.array([1.7e308]))


def test_bad_real_targets_are_refused_by_name():
    X = np.arange(32.0).reshape(4, 8)
    model = FPERegressor(**QUICK, early_stopping=True)
    with pytest.raises(ValueError, match="y_val must hold real numbers, got dtype <U1"):
        model.fit(X, X[:, 0], X_val=X, y_val=["a"] * 4)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "score"])
@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor])
@pytest.mark.parametrize("form", [sparse.coo_array, sparse.csr_array])
def test_sparse_targets_have_two_axes(kind, method, form):
    X = np.random.default_rng(0).standard_normal((12, 5))
    model = kind((4,), max_iter=2, random_state=0).fit(X, np.arange(12) % 2)
    try:
        y = form(np.arange(12) % 2)
    except ValueError:
        pytest.skip("CSR arrays of one axis need SciPy >= 1.15")
    with pytest.raises(ValueError, match=r"got a sparse array of shape \(12,\)"):
        getattr(model, method)(X, y)


def test_errors_beyond_the_variance_of_y_score_minus_infinity():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert r2(np.array([0.0, 1e-155]), np.ones(2), None) == -np.inf
        assert r2(np.array([0.0, 1e300]), np.array([0.0, 1e300]), None) == 1.0
