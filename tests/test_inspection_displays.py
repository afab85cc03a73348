import sys

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from sklearn_fpe.inspection import (
    ChildInputsDisplay,
    ExpansionCurveDisplay,
    InterferenceDisplay,
    feature_capacity,
    mean_cosine_similarity,
)
from sklearn_fpe.nn import MLP, DenseLinear, MaskedLinear

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def expanded(weight, kept, parents):
    """Make a network with a first layer of these weights (n_units, n_inputs)."""
    weight = torch.tensor(weight)
    first = MaskedLinear(weight, torch.zeros(len(weight)), torch.tensor(kept) == 1)
    return MLP(
        [first, DenseLinear(torch.ones(1, len(weight)), torch.zeros(1))],
        parents=[torch.tensor(parents)],
    )


@pytest.fixture
def network():
    """Two neurons on four inputs, the first of two children, the second of one."""
    weight = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [1.0, -1.0, 3.0, -3.0]]
    kept = [[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]
    return expanded(weight, kept, [0, 0, 1])


class Tree(ClassifierMixin, BaseEstimator):
    """A classifier whose score depends on `expansion` and on `splitter`."""

    def __init__(self, expansion=1, splitter="best"):
        self.expansion = expansion
        self.splitter = splitter

    def fit(self, X, y):
        self.tree_ = DecisionTreeClassifier(
            max_depth=self.expansion, splitter=self.splitter, random_state=0
        ).fit(X, y)
        self.classes_ = self.tree_.classes_
        return self

    def predict(self, X):
        return self.tree_.predict(X)


def test_expansion_curve_is_the_cross_validated_score():
    X, y = load_iris(return_X_y=True)
    display = ExpansionCurveDisplay.from_estimator(
        Tree(), X, y, expansions=(4, 1, 2), cv=3, scoring="balanced_accuracy"
    )
    assert display.expansions == [1, 2, 4]
    for expansion, scores in zip([1, 2, 4], display.test_scores, strict=True):
        expected = cross_val_score(
            Tree(expansion), X, y, cv=3, scoring="balanced_accuracy"
        )
        np.testing.assert_array_equal(scores, expected)
    mean, std = display.test_scores.mean(axis=1), display.test_scores.std(axis=1)
    np.testing.assert_array_equal(display.line_.get_xdata(), [1, 2, 4])
    np.testing.assert_array_equal(display.line_.get_ydata(), mean)
    np.testing.assert_array_equal(display.dense_level_.get_ydata(), mean[0])
    band = display.fill_between_.get_datalim(display.ax_.transData)
    assert (band.y0, band.y1) == pytest.approx(((mean - std).min(), (mean + std).max()))
    assert display.ax_.get_ylabel() == "Balanced accuracy"
    assert [tick.get_text() for tick in display.ax_.get_xticklabels()] == [
        "1",
        "2",
        "4",
    ]
    assert display.figure_ is display.ax_.figure


def test_expansion_curves_share_axes_and_take_pipelines():
    X, y = load_iris(return_X_y=True)
    first = ExpansionCurveDisplay.from_estimator(
        Tree(), X, y, expansions=[1, 6], cv=2, name="tree", line_kw={"color": "C5"}
    )
    second = ExpansionCurveDisplay.from_estimator(
        make_pipeline(StandardScaler(), Tree()),
        *(X, y),
        param_name="tree__expansion",
        expansions=[2, 3],
        cv=2,
        ax=first.ax_,
        name="scaled",
        fill_between_kw={"alpha": 0.1},
    )
    assert first.line_.get_color() == "C5"
    assert second.fill_between_.get_alpha() == 0.1
    assert second.dense_level_ is None
    assert second.ax_ is first.ax_
    labels = [text.get_text() for text in second.ax_.get_legend().get_texts()]
    assert labels == ["tree", "tree, dense", "scaled"]
    ticks = [tick.get_text() for tick in second.ax_.get_xticklabels()]
    assert ticks == ["1", "2", "3", "6"]


def test_expansion_curve_of_a_search_takes_the_best_candidate():
    X, y = load_iris(return_X_y=True)
    grid = {"expansion": [2, 1], "splitter": ["best", "random"]}
    search = GridSearchCV(Tree(), grid, cv=4).fit(X, y)
    display = ExpansionCurveDisplay.from_cv_results(
        search.cv_results_, plot_dense_level=False
    )
    assert display.expansions == [1, 2]
    assert display.dense_level_ is None
    for expansion, scores in zip([1, 2], display.test_scores, strict=True):
        folds = [
            cross_val_score(Tree(expansion, splitter), X, y, cv=4)
            for splitter in grid["splitter"]
        ]
        np.testing.assert_array_equal(scores, max(folds, key=np.mean))


def test_expansion_curve_leaves_out_candidates_without_an_expansion():
    # Such as a linear probe in the second of two grids.
    X, y = load_iris(return_X_y=True)
    with_expansion, without = {"expansion": [2, 1]}, {"splitter": ["random"]}
    grids = [with_expansion, without]
    search = GridSearchCV(Tree(), grids, cv=4, error_score="raise").fit(X, y)
    display = ExpansionCurveDisplay.from_cv_results(search.cv_results_)
    alone = GridSearchCV(Tree(), with_expansion, cv=4).fit(X, y)
    expected = ExpansionCurveDisplay.from_cv_results(alone.cv_results_)
    assert display.expansions == expected.expansions == [1, 2]
    np.testing.assert_array_equal(display.test_scores, expected.test_scores)


def test_expansion_curve_takes_one_of_several_metrics():
    X, y = load_iris(return_X_y=True)
    metrics = ["accuracy", "neg_log_loss"]
    tree = DecisionTreeClassifier(random_state=0)
    search = GridSearchCV(
        tree, {"max_depth": [1, 3]}, cv=3, scoring=metrics, refit="accuracy"
    ).fit(X, y)
    display = ExpansionCurveDisplay.from_cv_results(
        search.cv_results_, param_name="max_depth", metric="neg_log_loss"
    )
    np.testing.assert_allclose(
        display.line_.get_ydata(), search.cv_results_["mean_test_neg_log_loss"]
    )
    assert display.ax_.get_ylabel() == "Negative log loss"
    with pytest.raises(
        ValueError, match=r"'expansion' was not .* varied \['max_depth'"
    ):
        ExpansionCurveDisplay.from_cv_results(search.cv_results_)
    with pytest.raises(ValueError, match=r"metric='score' is not among .*'accuracy'"):
        ExpansionCurveDisplay.from_cv_results(
            search.cv_results_, param_name="max_depth"
        )


@pytest.mark.parametrize("expansions", [(), (0, 1), (1, 2.5), ((1, 2),)])
def test_expansion_curve_refuses_what_is_no_expansion(expansions):
    with pytest.raises(ValueError, match="expansions must"):
        ExpansionCurveDisplay.from_estimator(
            Tree(), [[0], [1]], [0, 1], expansions=expansions
        )


def test_interference_display_shows_both_distributions(network):
    weight = np.random.default_rng(0).normal(size=(5, 9))
    models = {"dense": weight, "net": network, "lone": np.ones((1, 2))}
    display = InterferenceDisplay.from_estimators(models, line_kw={"linewidth": 3})
    for name, model in models.items():
        capacity, similarity = display.lines_[name]
        values = np.sort(feature_capacity(model))
        np.testing.assert_array_equal(capacity.get_xdata()[1:], values)
        assert capacity.get_ydata()[-1] == 1
        assert f"{name} (mean {values.mean():.3f})" == capacity.get_label()
        assert capacity.get_linewidth() == 3
        if name != "lone":
            mean = mean_cosine_similarity(model)
            assert similarity.get_xdata()[1:].mean() == pytest.approx(mean)
    assert display.lines_["lone"][1].get_label() == "lone (no pair of neurons)"
    assert display.axes_.shape == (2,)
    assert display.figure_ is display.axes_[0].figure


def test_interference_display_takes_axes():
    _, axes = plt.subplots(1, 2)
    display = InterferenceDisplay.from_estimators({"a": np.eye(3)}, axes=axes)
    assert list(display.axes_) == list(axes)
    with pytest.raises(ValueError, match="axes must be two Axes, got 1"):
        display.plot(axes[0])
    with pytest.raises(ValueError, match="at least one model"):
        InterferenceDisplay.from_estimators({})


def test_child_inputs_side_by_side(network):
    network.feature_names_in_ = np.array(["a", "b", "c", "d"])
    display = ChildInputsDisplay.from_estimator(network, 0)
    (image,) = display.images_
    shown = image.get_array()
    # A kept weight of zero is seen; inputs of the sibling and pruned ones are not.
    np.testing.assert_array_equal(shown.mask, [[0, 0, 1, 1], [1, 1, 0, 1]])
    assert shown.compressed().tolist() == [1.0, 0.0, 2.0]
    assert image.get_clim() == (-2.0, 2.0)
    names = [tick.get_text() for tick in display.ax_.get_xticklabels()]
    assert names == ["a", "b", "c", "d"]
    assert display.ax_.get_title() == "Neuron 0, 2 children"


def test_child_inputs_as_images(network):
    _, ax = plt.subplots()
    display = ChildInputsDisplay.from_estimator(
        network, 0, image_shape=(2, 2), ax=ax, image_kw={"cmap": "PuOr"}
    )
    assert display.ax_ is ax
    masks = [image.get_array().mask.tolist() for image in display.images_]
    assert masks == [[[0, 0], [1, 1]], [[1, 1], [0, 1]]]
    assert [text.get_text() for text in ax.texts] == [
        "child 0: 2 inputs",
        "child 1: 1 input",
    ]
    assert display.colorbar_.cmap.name == "PuOr"
    assert not (display.images_[0].get_extent()[1] > display.images_[1].get_extent()[0])
    with pytest.raises(ValueError, match=r"image_shape .* 4 pixels.* got \(3, 2\)"):
        ChildInputsDisplay.from_estimator(network, 0, image_shape=(3, 2))


def test_child_inputs_of_many_children_fill_rows():
    model = expanded(np.eye(6), np.eye(6), [0] * 6)
    display = ChildInputsDisplay.from_estimator(model, image_shape=(2, 3))
    lefts = [image.get_extent()[0] for image in display.images_]
    tops = [image.get_extent()[3] for image in display.images_]
    assert lefts[:2] == lefts[4:]
    assert len(set(tops[:4])) == 1
    assert tops[4] == tops[5] > tops[0]


def test_child_inputs_of_a_dense_network_and_of_no_neuron(network):
    X, y = load_iris(return_X_y=True)
    model = MLPClassifier((2,), random_state=0).partial_fit(X, y, classes=[0, 1, 2])
    display = ChildInputsDisplay.from_estimator(model, 1)
    np.testing.assert_array_equal(display.weights, model.coefs_[0].T[1:])
    assert display.ax_.get_title() == "Neuron 1, 1 child"
    with pytest.raises(ValueError, match=r"neuron must be .*\[0 1\], got 2"):
        ChildInputsDisplay.from_estimator(network, 2)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, network):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for make in (
        lambda: ExpansionCurveDisplay.from_estimator(Tree(), [[0], [1]], [0, 1]),
        lambda: ExpansionCurveDisplay.from_cv_results({}),
        lambda: ExpansionCurveDisplay(expansions=[1], test_scores=[[1]]).plot(),
        lambda: InterferenceDisplay.from_estimators({"a": np.eye(2)}),
        lambda: ChildInputsDisplay.from_estimator(network),
    ):
        with pytest.raises(ImportError, match=r"needs matplotlib.*sklearn-fpe\[plot\]"):
            make()
