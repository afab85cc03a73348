"""The functions of scikit-learn that have no public name yet."""

from sklearn.base import _fit_context as fit_context
from sklearn.model_selection._validation import _score as score_on
from sklearn.model_selection._validation import (
    _warn_or_raise_about_fit_failures as report_failures,
)
from sklearn.utils.metaestimators import _safe_split as take_rows
from sklearn.utils.validation import _check_method_params as check_method_params

__all__ = [
    "check_method_params",
    "fit_context",
    "report_failures",
    "score_on",
    "take_rows",
]
