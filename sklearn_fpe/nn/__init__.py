"""Fixed Parameter Expansion in PyTorch: partitions, prune rules, layers, networks.

This half knows tensors and modules, and nothing of scikit-learn.
"""

from sklearn_fpe.nn._expand import check_expansion, expand
from sklearn_fpe.nn._layers import BlockLinear, DenseLinear, MaskedLinear
from sklearn_fpe.nn._mlp import MLP
from sklearn_fpe.nn._partition import is_shared, partition

__all__ = [
    "MLP",
    "BlockLinear",
    "DenseLinear",
    "MaskedLinear",
    "check_expansion",
    "expand",
    "is_shared",
    "partition",
]
