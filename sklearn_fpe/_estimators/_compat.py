"""What has no public API yet: the private names of scikit-learn that are used here."""

from sklearn.base import _fit_context as fit_context
from sklearn.metrics._scorer import _MultimetricScorer as MultimetricScorer
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import _insert_error_scores, _score
from sklearn.model_selection._validation import (
    _warn_or_raise_about_fit_failures as report_failures,
)
from sklearn.utils.metaestimators import _safe_split as take_rows
from sklearn.utils.validation import _check_method_params as check_method_params

__all__ = [
    "BaseSearchCV",
    "MultimetricScorer",
    "check_method_params",
    "fit_context",
    "insert_error_scores",
    "report_failures",
    "score_on",
    "take_rows",
]

score_on = _score
insert_error_scores = _insert_error_scores
