"""What has no public API yet: the private names of scikit-learn that are used here."""

from sklearn.base import _fit_context as fit_context

__all__ = ["fit_context"]
