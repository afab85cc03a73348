"""What has no public API yet: the private names of scikit-learn that are used here."""

from sklearn.base import _fit_context as fit_context
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

__all__ = ["check_sample_weight", "fit_context"]
