"""Fixed Parameter Expansion in PyTorch: rules, layers, networks.

:func:`expand` partitions the inputs of every neuron among its children
(``_split.py``), prunes the copied weights to the budget (``_prune.py``,
``_magnitude.py``, ``_structured.py``), and makes the layers that execute what is left
(``_building.py``, ``_blocks.py``, ``_layers.py``). Nothing is imported from
scikit-learn.
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
