"""Sample weights and class weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import make_classification, make_regression

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer

QUICK = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 4, "random_state": 0}

REPEATABLE = {"batch_size": 10**6, "weight_decay": 0.2}
"""With "auto", both depend on the number of rows, which repetition changes."""


def classification(n_samples=60, n_classes=3):
    return make_classification(
        n_samples, 8, n_informative=6, n_classes=n_classes, random_state=0
    )


def regression(n_samples=60):
    return make_regression(n_samples, 8, n_targets=2, random_state=0)


def outputs(model, X):
    if isinstance(model, FPEClassifier):
        return model.decision_function(X)
    return model.predict(X) if isinstance(model, FPERegressor) else model.transform(X)


def assert_same_bits(one, other):
    for a, b in zip(one.module_.parameters(), other.module_.parameters(), strict=True):
        assert a.equal(b)
    assert one.loss_curve_ == other.loss_curve_


PROBLEMS = [
    (FPEClassifier, classification),
    (FPERegressor, regression),
    (FPETransformer, classification),
]


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_weights_of_one_give_the_bits_of_none(kind, problem, early_stopping):
    X, y = problem()
    settings = {**QUICK, "early_stopping": early_stopping, "validation_fraction": 0.2}
    plain = kind(**settings).fit(X, y)
    weighted = kind(**settings).fit(X, y, sample_weight=np.ones(len(X)))
    assert_same_bits(plain, weighted)


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
def test_weights_of_one_give_the_bits_of_none_in_partial_fit(kind, problem):
    X, y = problem()
    plain, weighted = kind(**QUICK, warmup=1), kind(**QUICK, warmup=1)
    for _ in range(3):
        plain.partial_fit(X, y)
        weighted.partial_fit(X, y, sample_weight=np.ones(len(X)))
    assert_same_bits(plain, weighted)


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
@pytest.mark.parametrize("factor", [1e-12, 0.3, 7.0, 1e20])
def test_common_factor_of_the_weights_is_no_matter(kind, problem, factor):
    X, y = problem()
    plain = kind(**QUICK).fit(X, y)
    weighted = kind(**QUICK).fit(X, y, sample_weight=np.full(len(X), factor))
    np.testing.assert_allclose(
        outputs(weighted, X), outputs(plain, X), rtol=1e-3, atol=1e-3 * np.std(y)
    )


@settings(max_examples=8)
@given(st.data())
@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_integer_weights_are_repetition(kind, problem, is_sparse, data):
    X, y = problem()
    counts = st.lists(st.integers(0, 3), min_size=len(X), max_size=len(X))
    weights = np.array(data.draw(counts))
    weights[:20] = 1  # all classes
    repeated = np.repeat(np.arange(len(X)), weights)
    if is_sparse:
        X = sparse.csr_array(np.where(np.abs(X) < 0.5, 0, X))
    settings = {**QUICK, **REPEATABLE}
    weighted = kind(**settings).fit(X, y, sample_weight=weights)
    plain = kind(**settings).fit(X[repeated], y[repeated])
    scale = max(1.0, np.abs(outputs(plain, X)).max())
    np.testing.assert_allclose(
        outputs(weighted, X) / scale, outputs(plain, X) / scale, atol=1e-4
    )
    np.testing.assert_allclose(weighted.loss_curve_, plain.loss_curve_, rtol=1e-4)


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
def test_integer_weights_are_repetition_in_partial_fit(kind, problem):
    X, y = problem()
    weights = np.random.default_rng(0).integers(0, 4, len(X))
    weights[:20] = 1
    repeated = np.repeat(np.arange(len(X)), weights)
    settings = {**QUICK, **REPEATABLE, "warmup": 2}
    weighted, plain = kind(**settings), kind(**settings)
    for rows in (slice(0, 40), slice(20, 60), slice(0, 60)):
        weighted.partial_fit(X[rows], y[rows], sample_weight=weights[rows])
        chosen = repeated[(repeated >= rows.start) & (repeated < rows.stop)]
        plain.partial_fit(X[chosen], y[chosen])
    scale = max(1.0, np.abs(outputs(plain, X)).max())
    np.testing.assert_allclose(
        outputs(weighted, X) / scale, outputs(plain, X) / scale, atol=1e-4
    )


def test_balanced_classes_are_those_of_the_repeated_rows():
    X, y = classification()
    weights = np.where(y == 0, 3, 1)
    repeated = np.repeat(np.arange(len(X)), weights)
    settings = {**QUICK, **REPEATABLE, "class_weight": "balanced"}
    weighted = FPEClassifier(**settings).fit(X, y, sample_weight=weights)
    plain = FPEClassifier(**settings).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(
        weighted.predict_proba(X), plain.predict_proba(X), atol=1e-4
    )


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
def test_rows_of_weight_zero_are_removed_before_everything(
    kind, problem, early_stopping
):
    X, y = problem()
    rng = np.random.default_rng(0)
    used = rng.random(len(X)) < 0.8
    # Anything may stand in the others: extreme values, a class of their own.
    X_all, y_all = X.copy(), y.copy()
    X_all[~used] *= 1e9
    y_all[~used] = 99
    settings = {**QUICK, "early_stopping": early_stopping, "validation_fraction": 0.3}
    weighted = kind(**settings).fit(X_all, y_all, sample_weight=used.astype(float))
    plain = kind(**settings).fit(X[used], y[used])
    assert_same_bits(plain, weighted)
    if kind is FPEClassifier:
        np.testing.assert_array_equal(weighted.classes_, [0, 1, 2])


def test_validation_rows_of_weight_zero_are_removed():
    X, y = classification()
    settings = {**QUICK, "early_stopping": True}
    plain = FPEClassifier(**settings).fit(
        X[:40], y[:40], X_val=X[40:50], y_val=y[40:50]
    )
    y[50:] = 7
    weights = np.r_[np.ones(10), np.zeros(10)]
    weighted = FPEClassifier(**settings).fit(
        X[:40], y[:40], X_val=X[40:], y_val=y[40:], sample_weight_val=weights
    )
    assert plain.validation_scores_ == weighted.validation_scores_
    assert_same_bits(plain, weighted)


@pytest.mark.parametrize("class_weight", [{0: 1, 1: 5, 2: 1}, {1: 5}])
def test_class_weight_is_a_sample_weight(class_weight):
    X, y = classification()
    by_class = FPEClassifier(**QUICK, class_weight=class_weight).fit(X, y)
    by_row = FPEClassifier(**QUICK).fit(X, y, sample_weight=np.where(y == 1, 5, 1))
    assert_same_bits(by_class, by_row)


def test_balanced_is_a_sample_weight():
    X, y = classification()
    X, y = X[(y < 2) | (np.arange(60) < 9)], y[(y < 2) | (np.arange(60) < 9)]
    counts = np.bincount(y)
    by_class = FPEClassifier(**QUICK, class_weight="balanced").fit(X, y)
    by_row = FPEClassifier(**QUICK).fit(X, y, sample_weight=len(y) / (3 * counts[y]))
    assert_same_bits(by_class, by_row)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "b", "c"]),
        np.array(["0", "1", "2"]),
        np.array(["0", "1", "2"], dtype=object),
        np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[D]"),
        np.array([2**53, 2**53 + 1, 2**53 + 2]),
        np.array([0.0, 1.0, 2.0], np.float32),
    ],
    ids=str,
)
def test_class_weight_names_labels_of_any_type(labels):
    X, y = classification()
    by_name = FPEClassifier(**QUICK, class_weight={labels[1]: 4.0}).fit(X, labels[y])
    by_code = FPEClassifier(**QUICK, class_weight={1: 4.0}).fit(X, y)
    assert_same_bits(by_name, by_code)


def test_class_weight_of_zero_removes_rows_but_not_the_class():
    X, y = classification()
    model = FPEClassifier(**QUICK, class_weight={2: 0.0}).fit(X, y)
    np.testing.assert_array_equal(model.classes_, [0, 1, 2])
    garbage = np.where((y == 2)[:, None], 1e6 * X, X)
    other = FPEClassifier(**QUICK, class_weight={2: 0.0}).fit(garbage, y)
    assert_same_bits(model, other)


def test_weights_multiply():
    X, y = classification()
    rows = np.linspace(1, 2, len(X))
    both = FPEClassifier(**QUICK, class_weight={0: 3.0}).fit(X, y, sample_weight=rows)
    one = FPEClassifier(**QUICK).fit(X, y, sample_weight=rows * np.where(y == 0, 3, 1))
    assert_same_bits(both, one)


def test_class_weight_in_partial_fit_may_name_absent_classes():
    X, y = classification()
    rows = y < 2
    model = FPEClassifier(**QUICK, class_weight={1: 2.0, 2: 5.0})
    model.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    other = FPEClassifier(**QUICK).partial_fit(
        X[rows], y[rows], classes=[0, 1, 2], sample_weight=1.0 + (y[rows] == 1)
    )
    assert_same_bits(model, other)


def test_scores_are_weighted():
    X, y = classification()
    model = FPEClassifier(**QUICK).fit(X, y)
    right = model.predict(X) == y
    assert 0 < right.mean() < 1
    assert model.score(X, y, sample_weight=right) == 1.0
    assert model.score(X, y, sample_weight=~right) == 0.0
    model = FPERegressor(**QUICK).fit(X, y)
    assert model.score(X, y) != model.score(X, y, sample_weight=1.0 + (y == 1))


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor])
@pytest.mark.parametrize("weights", [["a"] * 60, [None, *range(59)]])
def test_weights_of_a_score_are_numbers(kind, weights):
    X, y = classification()
    model = kind(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match="sample_weight"):
        model.score(X, y, sample_weight=weights)


def test_heavier_class_is_predicted_more_often():
    X, y = classification()
    plain = FPEClassifier(**QUICK).fit(X, y)
    heavy = FPEClassifier(**QUICK, class_weight={0: 50.0}).fit(X, y)
    assert (heavy.predict(X) == 0).sum() > (plain.predict(X) == 0).sum()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(60), "sample_weight must have a positive entry, got 60 zeros"),
        (-np.ones(60), "sample_weight must not be negative, got -1"),
        (np.full(60, np.nan), "Input sample_weight contains NaN"),
        (np.full(60, 1e300), "Input sample_weight contains a value too large"),
        (np.ones(59), r"sample_weight must have one entry per row, shape \(60,\)"),
        (2.0, r"sample_weight must have one entry per row, shape \(60,\)"),
        (np.ones((60, 2)), r"sample_weight must have one entry .* got shape \(60, 2\)"),
        (np.ones(60, "m8[s]"), "sample_weight must hold real numbers, got dtype"),
        (["1"] * 60, "sample_weight must hold real numbers, got dtype <U1"),
        ([None, *range(59)], "sample_weight contains NaN or another missing value"),
        (np.ones(60) + 1j, "sample_weight must hold real numbers, got dtype complex"),
        (
            np.ma.masked_array(np.ones(60), np.arange(60) == 4),
            "sample_weight must have no masked entries, .* got 1",
        ),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_bad_sample_weights(weights, message, method):
    X, y = classification()
    model = FPEClassifier(**QUICK)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(X, y, sample_weight=weights)
    assert not hasattr(model, "module_")


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({0: -1.0}, "class_weight must be finite and not negative, got -1.0 for 0"),
        ({0: np.nan}, "class_weight must be finite and not negative, got nan for 0"),
        ({0: np.ones(2)}, r"must map every label to a number, got array.* for 0"),
        ({0: "2"}, "must map every label to a number, got '2' for 0"),
        ({0: 1e308, 1: 1e308}, "class_weight times sample_weight must have a finite"),
        ({0: np.inf}, "class_weight must be finite and not negative"),
        ({0: 0, 1: 0, 2: 0}, "class_weight must be positive for a class in y"),
        ({"a": 1.0}, "are not in class_weight"),
        ("even", "class_weight"),
    ],
)
def test_bad_class_weights(class_weight, message):
    X, y = classification()
    model = FPEClassifier(**QUICK, class_weight=class_weight)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)
    assert not hasattr(model, "module_")


def test_class_weight_of_labels_is_not_for_several_of_them():
    X, y = classification()
    with pytest.raises(ValueError, match="class_weight must be 'balanced', a list of"):
        FPEClassifier(**QUICK, class_weight={0: 1.0, 1: 2.0}).fit(X, np.eye(3)[y])


def test_balanced_is_not_for_partial_fit():
    X, y = classification()
    model = FPEClassifier(**QUICK, class_weight="balanced")
    with pytest.raises(ValueError, match="partial_fit does not support class_weight"):
        model.partial_fit(X, y)
