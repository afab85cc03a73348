"""scikit-learn's common checks, with default and with other settings."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer

WEIGHT_EQUIVALENCE = {
    name: "compares at 1e-7, but training is in float32, as in scikit-learn's own MLPs"
    for name in (
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    )
}

SETTINGS = (
    {},
    {"prune": "structured", "split": "shared"},
    {"prune": "magnitude", "split": "random"},
)


def estimators():
    for settings in SETTINGS:
        settings = {"hidden_layer_sizes": (8,), "max_iter": 20, **settings}
        yield FPEClassifier(expansion=2, **settings)
        yield FPERegressor(expansion=2, **settings)
        yield FPETransformer(expansion=2, **settings)


@pytest.mark.filterwarnings(
    # The checks fit on a feature or two, which cannot be dealt to two children.
    "ignore:expansion=.* cannot be had:UserWarning",
    "ignore:The outgoing weights:UserWarning",
)
@parametrize_with_checks(
    list(estimators()),
    expected_failed_checks=lambda estimator: WEIGHT_EQUIVALENCE,
    xfail_strict=True,
)
def test_common_checks(estimator, check):
    check(estimator)
