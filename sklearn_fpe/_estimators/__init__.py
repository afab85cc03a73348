"""The scikit-learn estimators: they validate and compose, and hold no maths."""
