"""Registered rules as the names or dicts that pickles and model files hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_fpe.nn import Activation, PruneRule, SplitRule
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS
from sklearn_fpe.nn._state import choice, integer, record, require

RULES: dict[str, dict[str, Any]] = {
    "split": SPLITS,
    "prune": PRUNES,
    "activation": ACTIVATIONS,
}
"""The registered rules, by the field of a recipe and by name."""


def rule_to_state(field: str, rule: Any) -> Any:
    """Return a rule of a field of a recipe as a plain value.

    A registered rule becomes its name; a prune rule with other parameters becomes a
    dict of its name and parameters. Other rules are returned unchanged.
    """
    name = getattr(rule, "name", None)
    known = RULES[field].get(name) if isinstance(name, str) else None
    if known is None or type(known) is not type(rule):
        return rule
    if known == rule:
        return rule.name
    # Parameters are all that two rules of a class of prune rules can differ in.
    if field != "prune":
        return rule
    return {"rule": rule.name, **{k: _plain(v) for k, v in vars(rule).items()}}


def rule_from_state(field: str, state: Any, name: str) -> Any:
    """Return the rule of a state, and check it; messages call it `name`."""
    rules = RULES[field]
    if isinstance(state, dict) and field == "prune":
        known = rules[choice(state.get("rule"), f"{name}.rule", rules)]
        record(state, name, ("rule", *vars(known)))
        parameters = {key: _plain(state[key]) for key in vars(known)}
        for key, default in vars(known).items():
            if type(default) is int:
                integer(parameters[key], f"{name}.{key}", 1)
            else:
                number = parameters[key]
                fits = type(number) in (int, float) and 0 <= number < 2**53
                require(fits, f"{name}.{key} must be a number of at least 0", number)
        return type(known)(**parameters)
    if isinstance(state, SplitRule | PruneRule | Activation):
        return state
    return rules[choice(state, name, rules)]


def _plain(number: Any) -> Any:
    """Return a NumPy number as one of Python."""
    return number.item() if isinstance(number, np.generic) else number
