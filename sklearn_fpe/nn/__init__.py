"""Fixed Parameter Expansion in PyTorch: rules, layers, networks.

This package uses tensors and modules and imports nothing from scikit-learn.
"""

from sklearn_fpe.nn._activation import Activation
from sklearn_fpe.nn._affine import Affine
from sklearn_fpe.nn._blocks import BlockLinear
from sklearn_fpe.nn._ensemble import Ensemble
from sklearn_fpe.nn._expand import check_expansion, expand
from sklearn_fpe.nn._layers import DenseLinear, MaskedLinear
from sklearn_fpe.nn._mlp import MLP
from sklearn_fpe.nn._prune import Plan, PruneRule, Splitter
from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._split import SplitRule, is_shared, partition

__all__ = [
    "MLP",
    "Activation",
    "Affine",
    "BlockLinear",
    "DenseLinear",
    "Ensemble",
    "MaskedLinear",
    "Plan",
    "PruneRule",
    "Shape",
    "SplitRule",
    "Splitter",
    "check_expansion",
    "expand",
    "is_shared",
    "partition",
]
