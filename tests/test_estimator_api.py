"""What scikit-learn asks of estimators, beyond its common checks."""

import inspect
import re

import numpy as np
import pytest
import sklearn
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS

QUICK = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 3, "random_state": 0}
ESTIMATORS = [FPEClassifier, FPERegressor, FPETransformer]


def problem():
    return make_classification(60, 8, n_informative=6, n_classes=3, random_state=0)


# --------------------------------------------------------------------------------------
# Metadata routing
# --------------------------------------------------------------------------------------


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routing")
def test_weights_are_routed_through_a_search_over_a_pipeline():
    X, y = problem()
    weights = np.linspace(0, 3, 60)
    model = FPEClassifier(**QUICK).set_fit_request(sample_weight=True)
    model.set_score_request(sample_weight=True)
    pipeline = make_pipeline(
        StandardScaler().set_fit_request(sample_weight=False), model
    )
    search = GridSearchCV(pipeline, {"fpeclassifier__expansion": [2]}, cv=2)
    search.fit(X, y, sample_weight=weights)
    scaled = StandardScaler().fit_transform(X)
    direct = FPEClassifier(**QUICK).fit(scaled, y, sample_weight=weights)
    routed = search.best_estimator_[-1]
    np.testing.assert_array_equal(
        routed.predict_proba(scaled), direct.predict_proba(scaled)
    )


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor])
def test_weights_that_nobody_asked_for_are_an_error(kind):
    X, y = problem()
    with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError):
        cross_validate(kind(**QUICK), X, y, cv=2, params={"sample_weight": np.ones(60)})


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_requests_name_what_the_methods_take(kind):
    requests = kind().get_metadata_routing()._serialize()
    assert set(requests["fit"]) == {
        "sample_weight",
        "X_val",
        "y_val",
        "sample_weight_val",
    }
    classes = set() if kind is FPERegressor else {"classes"}
    assert set(requests["partial_fit"]) == {"sample_weight"} | classes
    X, y = problem()
    kind(**QUICK).fit(X, y)


# --------------------------------------------------------------------------------------
# Tags
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_tags_are_honest(kind):
    tags = get_tags(kind())
    assert tags.target_tags.required
    assert tags.input_tags.sparse
    assert not tags.input_tags.allow_nan
    assert not tags.non_deterministic
    assert not tags.array_api_support
    assert tags.requires_fit


def test_tags_of_the_classifier():
    tags = get_tags(FPEClassifier())
    assert tags.estimator_type == "classifier"
    assert tags.classifier_tags.multi_class
    assert tags.classifier_tags.multi_label
    assert not tags.target_tags.multi_output
    X, y = make_multilabel_classification(60, 8, random_state=0)
    FPEClassifier(**QUICK).fit(X, y)


def test_tags_of_the_regressor():
    tags = get_tags(FPERegressor())
    assert tags.estimator_type == "regressor"
    assert tags.target_tags.multi_output


def test_tags_of_the_transformer():
    assert get_tags(FPETransformer()).transformer_tags.preserves_dtype == ["float32"]
    for task, is_multi_output in (("classification", False), ("regression", True)):
        tags = get_tags(FPETransformer(task=task))
        assert tags.target_tags.multi_output == is_multi_output
        assert tags.estimator_type is None


# --------------------------------------------------------------------------------------
# Representation
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_html_documents_every_parameter(kind):
    html = kind()._repr_html_()
    documented = set(re.findall(r"--doc-link-(\w+);", html))
    assert documented == set(kind().get_params())
    assert 'href="https://' in html
    assert "scikit-learn.org" not in html.partition("</style>")[2]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_every_attribute_is_documented(kind):
    docscrape = pytest.importorskip("numpydoc.docscrape")
    X, y = problem()
    sections = docscrape.NumpyDocString(kind.__doc__)
    model = kind(**QUICK, early_stopping=True).fit(X, y)
    public = {n for n in dir(model) if n.endswith("_") and not n.startswith("_")}
    assert public <= {p.name for p in sections["Attributes"]}


# What stands in the descriptions of single classes for the same thing.
DIFFERENT = {
    *("hidden_layer_sizes", "module_", "out_activation_", "scoring", "warm_start")
}


@pytest.mark.parametrize("kind", [FPERegressor, FPETransformer])
@pytest.mark.parametrize("section", ["Parameters", "Attributes"])
def test_descriptions_are_equal_where_they_mean_the_same(kind, section):
    docscrape = pytest.importorskip("numpydoc.docscrape")
    one, other = (
        {p.name: (p.type, p.desc) for p in docscrape.NumpyDocString(k.__doc__)[section]}
        for k in (FPEClassifier, kind)
    )
    for name in one.keys() & other.keys() - DIFFERENT:
        assert one[name] == other[name], name
    # In the same order.
    shared = one.keys() & other.keys()
    assert [n for n in one if n in shared] == [n for n in other if n in shared]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_parameters_are_documented_in_the_order_of_the_signature(kind):
    docscrape = pytest.importorskip("numpydoc.docscrape")
    documented = docscrape.NumpyDocString(kind.__doc__)["Parameters"]
    parameters = inspect.signature(kind).parameters
    assert [p.name for p in documented] == list(parameters)
    for p in documented:
        default = parameters[p.name].default
        written = p.type.rpartition("default=")[2].replace('"', "'")
        assert eval(written) == default, p.name


@pytest.mark.parametrize("kind", [FPERegressor, FPETransformer])
@pytest.mark.parametrize("method", ["partial_fit", "hidden_activations", "score"])
def test_descriptions_of_methods_are_equal(kind, method):
    if not hasattr(kind, method):
        pytest.skip("not a method of this class")
    one, other = (inspect.getdoc(getattr(k, method)) for k in (FPEClassifier, kind))
    if method == "hidden_activations":
        assert one == other
    elif method == "partial_fit":
        first, second = (text.partition("Parameters")[0] for text in (one, other))
        assert first == second
    else:
        assert one.partition("Parameters")[2] == other.partition("Parameters")[2]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_every_rule_is_documented(kind):
    docscrape = pytest.importorskip("numpydoc.docscrape")
    parameters = docscrape.NumpyDocString(kind.__doc__)["Parameters"]
    described = {p.name: p.type + "\n".join(p.desc) for p in parameters}
    rules = {"split": SPLITS, "prune": PRUNES, "activation": ACTIVATIONS}
    for name, registered in rules.items():
        for rule in registered:
            assert f'"{rule}"' in described[name]


def test_representation_is_short():
    assert repr(FPEClassifier((8,), expansion=4)) == (
        "FPEClassifier(hidden_layer_sizes=(8,))"
    )


# --------------------------------------------------------------------------------------
# Feature names and searches
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_feature_names_go_in_and_out(kind):
    pd = pytest.importorskip("pandas")
    X, y = problem()
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(8)])
    model = kind(**QUICK, early_stopping=True).fit(frame, y)
    assert list(model.feature_names_in_) == list(frame.columns)
    assert model.n_features_in_ == 8
    predict = model.transform if kind is FPETransformer else model.predict
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        predict(X)
    with pytest.raises(ValueError, match="feature names should match"):
        predict(frame.rename(columns={"x0": "y0"}))
    model.fit(X, y)
    assert not hasattr(model, "feature_names_in_")


def test_search_compares_at_equal_parameters():
    X, y = problem()
    grid = {"expansion": [1, 2], "split": ["shared", "random"]}
    search = GridSearchCV(FPEClassifier(**QUICK), grid, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.n_nonzero_ == search.best_estimator_.budget_


def test_pipeline_with_two_of_them():
    X, y = problem()
    model = Pipeline(
        [("hidden", FPETransformer(**QUICK)), ("classifier", FPEClassifier(**QUICK))]
    )
    assert model.fit(X, y).predict(X).shape == (60,)
    assert (
        model["classifier"].n_features_in_
        == model["hidden"].module_.parents[-1].numel()
    )
