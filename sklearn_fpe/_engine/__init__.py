"""The training engine: torch, and nothing of scikit-learn's estimators.

The prune rules that need training are registered when the package is imported.
"""

from sklearn_fpe._engine import _pruning, _rewiring

__all__ = ["_pruning", "_rewiring"]
