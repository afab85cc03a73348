"""The training engine: torch, and nothing of scikit-learn's estimators."""
