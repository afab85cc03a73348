"""Measure and plot interference in a network."""

from sklearn_fpe.inspection._child_inputs import ChildInputsDisplay
from sklearn_fpe.inspection._expansion_curve import ExpansionCurveDisplay
from sklearn_fpe.inspection._interference import InterferenceDisplay
from sklearn_fpe.inspection._measures import (
    clause_collisions,
    clause_coverage,
    expected_collisions,
    expected_coverage,
    feature_capacity,
    mean_cosine_similarity,
    shared_inputs,
)

__all__ = [
    "ChildInputsDisplay",
    "ExpansionCurveDisplay",
    "InterferenceDisplay",
    "clause_collisions",
    "clause_coverage",
    "expected_collisions",
    "expected_coverage",
    "feature_capacity",
    "mean_cosine_similarity",
    "shared_inputs",
]
