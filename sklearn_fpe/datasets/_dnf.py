"""Boolean formulas, on which interference between features can be set by hand."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.utils.validation import check_scalar

_MAX_DRAWS_PER_ROW = 1000
"""Give up if a row is still not found after so many draws, on average."""


@dataclass(frozen=True, eq=False)
class DNF:
    r"""Boolean formula in disjunctive normal form, an OR of ANDs of literals.

    .. math:: y(x) = \bigvee_{c} \bigwedge_{l} [x_{v(c, l)} = s(c, l)]

    Attributes
    ----------
    variables : ndarray of int of shape (n_clauses, clause_size)
        Variables :math:`v` of every clause, distinct and ascending: columns of X.
    signs : ndarray of bool of shape (n_clauses, clause_size)
        Value :math:`s` that satisfies each literal; False is a negated literal.
    n_variables : int
        Number of variables, those of no clause included: the number of columns of X.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.datasets import DNF
    >>> formula = DNF(np.array([[0, 1], [2, 3]]), np.array([[1, 1], [1, 0]]) == 1, 5)
    >>> print(formula)
    (x0 & x1) | (x2 & ~x3)
    >>> formula([[1, 1, 0, 0, 0], [1, 0, 1, 1, 1], [0, 0, 1, 0, 1]])
    array([ True, False,  True])
    >>> formula.feature_groups
    array([0, 0, 1, 1, 2])
    """

    variables: np.ndarray
    signs: np.ndarray
    n_variables: int

    def satisfied(self, X):
        """Tell which clauses each row satisfies.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_variables)
            Assignments; zero is False, all else is True.

        Returns
        -------
        satisfied : ndarray of bool of shape (n_samples, n_clauses)
            Whether all literals of the clause hold.
        """
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.n_variables:
            raise ValueError(
                f"X must have shape (n_samples, {self.n_variables}), one column per "
                f"variable, got {X.shape}."
            )
        return ((X != 0)[:, self.variables] == self.signs).all(axis=2)

    def __call__(self, X):
        """Tell which rows satisfy the formula, bool (n_samples,)."""
        return self.satisfied(X).any(axis=1)

    @property
    def feature_groups(self):
        """Label of every variable, (n_variables,): its clause, for ``split="groups"``.

        A variable of several clauses has the label of the first. A variable of no
        clause is a group of its own, with a label from ``n_clauses`` on.
        """
        labels = np.full(self.n_variables, -1)
        for clause in reversed(range(len(self.variables))):
            labels[self.variables[clause]] = clause
        unused = np.flatnonzero(labels < 0)
        labels[unused] = len(self.variables) + np.arange(len(unused))
        return labels

    def __str__(self):
        clauses = [
            " & ".join(
                f"{'' if sign else '~'}x{v}" for v, sign in zip(*row, strict=True)
            )
            for row in zip(self.variables, self.signs, strict=True)
        ]
        return " | ".join(f"({clause})" for clause in clauses)


def make_dnf(
    n_samples=1000,
    *,
    n_clauses=8,
    clause_size=4,
    n_variables=None,
    shared=False,
    negated=False,
    balance=0.5,
    density=0.5,
    positives="any",
    near_misses=0.0,
    random_state=None,
):
    """Make a Boolean task: a random formula in disjunctive normal form.

    A row is of class 1 if it satisfies at least one of `n_clauses` conjunctions of
    `clause_size` literals. Each clause is a feature that a hidden neuron can detect;
    with more clauses than neurons, clauses have to share neurons and interfere. The
    variables of a clause are drawn from all columns, not from neighbouring ones.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    n_clauses : int, default=8
        Number of clauses, all different.
    clause_size : int, default=4
        Literals per clause, each of another variable.
    n_variables : int, default=None
        Number of variables; those of no clause are noise. None: as many as the
        clauses have literals, or half as many with ``shared=True``.
    shared : bool, default=False
        Whether each clause draws its variables from all of them, so that clauses
        overlap (and a variable may be in none). False: no variable is in two.
    negated : bool, default=False
        Whether each literal is negated with probability 1/2. False: none is.
    balance : float, default=0.5
        Share of rows of class 1, in [0, 1]; exact up to rounding, halves up.
    density : float, default=0.5
        Probability, in (0, 1), that a variable takes the value which its literal asks
        for, before the row is conditioned on its class. A variable of several clauses
        follows the first of them, one of no clause is 1 with this probability.
    positives : {"any", "single"}, default="any"
        Whether a row of class 1 satisfies one clause or more, or exactly one, which is
        every clause equally often.
    near_misses : float, default=0.0
        Share of the rows of class 0, in [0, 1], that miss the formula by one literal.
    random_state : int, RandomState instance, Generator or None, default=None
        Source of randomness for the formula and the rows. The same int gives the same
        task. None draws from the system, never from global generators.

    Returns
    -------
    X : ndarray of float32 of shape (n_samples, n_variables)
        Assignments, 0 or 1.
    y : ndarray of int of shape (n_samples,)
        Class, 0 or 1: the value of the formula.
    formula : DNF
        The clauses. ``formula.feature_groups`` labels the columns of X by clause, for
        the parameter ``feature_groups`` of the estimators.

    Raises
    ------
    ValueError
        If a parameter is out of range, the variables are too few for the clauses, or
        rows of a class are too rare to be found.

    Notes
    -----
    Let P be the distribution under which variables are independent and each makes its
    literal true with probability `density`. The classes are drawn apart, then shuffled:

    - class 1, ``"any"``: P given that the formula holds;
    - class 1, ``"single"``: P given that one chosen clause holds and no other does;
    - class 0: P given that no clause holds;
    - near misses: a row of ``"single"`` with one literal of its clause, each equally
      likely, flipped; drawn again if that satisfies another clause.

    The draws are exact. For ``"any"``, clauses are planted by their probability and
    the rows thinned by the number of clauses they satisfy [1]_. For the others, the
    connected part of the formula in which a forbidden clause holds is redrawn until
    none does.

    With the defaults, rows of class 1 have more true literals, which a linear model can
    use. With ``positives="single"`` and ``near_misses=1.0`` the classes differ by one
    literal of one clause.

    References
    ----------
    .. [1] R. M. Karp, M. Luby, N. Madras, "Monte-Carlo approximation algorithms for
       enumeration problems", Journal of Algorithms 10 (1989).

    Examples
    --------
    >>> from sklearn_fpe.datasets import make_dnf
    >>> X, y, formula = make_dnf(100, n_clauses=3, clause_size=2, random_state=0)
    >>> X.shape, y.sum()
    ((100, 6), np.int64(50))
    >>> bool((formula(X) == y).all())
    True
    >>> print(formula)
    (x2 & x3) | (x4 & x5) | (x0 & x1)
    """
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    check_scalar(n_clauses, "n_clauses", Integral, min_val=1)
    check_scalar(clause_size, "clause_size", Integral, min_val=1)
    if n_variables is None:
        n_literals = n_clauses * clause_size
        n_variables = max(clause_size, -(-n_literals // 2)) if shared else n_literals
    check_scalar(n_variables, "n_variables", Integral, min_val=1)
    check_scalar(balance, "balance", Real, min_val=0, max_val=1)
    check_scalar(near_misses, "near_misses", Real, min_val=0, max_val=1)
    if not 0 < density < 1:
        raise ValueError(f"density must be between 0 and 1, got {density!r}.")
    if positives not in ("any", "single"):
        raise ValueError(f"positives must be 'any' or 'single', got {positives!r}.")

    rng = _generator(random_state)
    draw_clauses = _overlapping_clauses if shared else _disjoint_clauses
    variables, signs = draw_clauses(rng, n_clauses, clause_size, n_variables, negated)
    formula = DNF(variables, signs, int(n_variables))

    sampler = _Sampler(formula, density, rng)
    n_positive = math.floor(balance * n_samples + 0.5)
    n_near = math.floor(near_misses * (n_samples - n_positive) + 0.5)
    if positives == "any":
        positive = sampler.satisfying(n_positive)
    else:
        positive, _ = sampler.satisfying_one(n_positive)
    negative = sampler.unsatisfying(n_samples - n_positive - n_near)
    X = np.vstack([positive, sampler.near_misses(n_near), negative])
    order = rng.permutation(n_samples)
    y = (np.arange(n_samples) < n_positive).astype(np.int64)
    return X[order].astype(np.float32), y[order], formula


def _generator(random_state):
    """Return a Generator; a RandomState moves on, so that calls differ."""
    if isinstance(random_state, np.random.RandomState):
        random_state = random_state.randint(2**32, size=4, dtype=np.uint32)
    return np.random.default_rng(random_state)


def _draw_signs(rng, shape, negated):
    return rng.random(shape) < 0.5 if negated else np.ones(shape, dtype=bool)


def _disjoint_clauses(rng, n_clauses, clause_size, n_variables, negated):
    """Draw clauses of which no two share a variable."""
    n_literals = n_clauses * clause_size
    if n_variables < n_literals:
        raise ValueError(
            f"n_variables must be at least n_clauses * clause_size = {n_literals} with "
            f"shared=False, got {n_variables}."
        )
    drawn = rng.permutation(n_variables)[:n_literals]
    variables = np.sort(drawn.reshape(n_clauses, clause_size), axis=1)
    return variables, _draw_signs(rng, variables.shape, negated)


def _overlapping_clauses(rng, n_clauses, clause_size, n_variables, negated):
    """Draw clauses from all variables, no two of them the same."""
    n_signs = 2**clause_size if negated else 1
    n_distinct = math.comb(n_variables, clause_size) * n_signs
    if n_distinct < n_clauses:
        raise ValueError(
            f"n_variables={n_variables} allow {n_distinct} different clauses of "
            f"clause_size={clause_size} with negated={negated}, fewer than n_clauses="
            f"{n_clauses}."
        )
    clauses = {}
    while len(clauses) < n_clauses:
        variables = np.sort(rng.permutation(n_variables)[:clause_size])
        signs = _draw_signs(rng, clause_size, negated)
        clauses.setdefault((*variables, *signs), (variables, signs))
    variables, signs = zip(*clauses.values(), strict=True)
    return np.array(variables), np.array(signs)


class _Sampler:
    """Draws assignments (bool, one row each) given what they satisfy."""

    def __init__(self, formula, density, rng):
        self.formula, self.rng = formula, rng
        self.variables, self.signs = formula.variables, formula.signs
        self.p_true = np.full(formula.n_variables, density)
        for variables, signs in zip(
            self.variables[::-1], self.signs[::-1], strict=True
        ):
            self.p_true[variables] = np.where(signs, density, 1 - density)

        # Clauses that share no variable are independent of each other. A component
        # is a set of clauses linked by shared variables, with these variables.
        self.n_clauses, self.clause_size = self.variables.shape
        n_nodes = formula.n_variables + self.n_clauses
        clause = np.arange(formula.n_variables, n_nodes).repeat(self.clause_size)
        edges = (np.ones(clause.size), (self.variables.ravel(), clause))
        graph = coo_array(edges, shape=(n_nodes, n_nodes))
        self.n_components, component = connected_components(graph, directed=False)
        self.variable_component = component[: formula.n_variables]
        self.clause_component = component[formula.n_variables :]

    def unconditional(self, n_rows):
        return self.rng.random((n_rows, self.formula.n_variables)) < self.p_true

    def unsatisfying(self, n_rows):
        """Draw rows that satisfy no clause."""
        X = self.unconditional(n_rows)
        return self._redraw(X, np.zeros_like(X), np.full(n_rows, -1))

    def satisfying(self, n_rows):
        """Draw rows that satisfy the formula.

        Planting a clause drawn by its probability finds a row once for every clause
        that it satisfies; keeping it with one over their number makes up for that.
        """
        p_first = self.p_true[self.variables]
        p_clause = np.where(self.signs, p_first, 1 - p_first).prod(axis=1)
        p_clause /= p_clause.sum()
        X = np.empty((n_rows, self.formula.n_variables), dtype=bool)
        missing = np.arange(n_rows)
        while missing.size:
            clause = self.rng.choice(self.n_clauses, size=missing.size, p=p_clause)
            rows = self._planted(clause)
            n_satisfied = self.formula.satisfied(rows).sum(axis=1)
            keep = self.rng.random(missing.size) * n_satisfied < 1
            X[missing[keep]] = rows[keep]
            missing = missing[~keep]
        return X

    def satisfying_one(self, n_rows):
        """Draw rows that satisfy one clause; return them and these clauses."""
        order = self.rng.permutation(self.n_clauses)
        clause = order[np.arange(n_rows) % self.n_clauses]
        X = self._planted(clause)
        fixed = np.zeros_like(X)
        np.put_along_axis(fixed, self.variables[clause], True, axis=1)
        return self._redraw(X, fixed, clause), clause

    def near_misses(self, n_rows):
        """Draw rows that satisfy no clause, but would with one literal flipped."""
        X = np.empty((n_rows, self.formula.n_variables), dtype=bool)
        missing = np.arange(n_rows)
        for _ in range(_MAX_DRAWS_PER_ROW):
            if not missing.size:
                return X
            rows, clause = self.satisfying_one(missing.size)
            literal = self.rng.integers(self.clause_size, size=len(rows))
            rows[np.arange(len(rows)), self.variables[clause, literal]] ^= True
            keep = ~self.formula(rows)
            X[missing[keep]] = rows[keep]
            missing = missing[~keep]
        raise ValueError(
            "near_misses: flipping a literal of a satisfied clause nearly always "
            "satisfies another one; use fewer or larger clauses, or more variables "
            f"(n_variables={self.formula.n_variables})."
        )

    def _planted(self, clause):
        """Draw rows with the literals of their `clause` (n_rows,) made true."""
        X = self.unconditional(len(clause))
        np.put_along_axis(X, self.variables[clause], self.signs[clause], axis=1)
        return X

    def _redraw(self, X, fixed, exempt):
        """Redraw rows of X, in place, until they satisfy no clause but the exempt one.

        Values of X where `fixed` (of the shape of X) stay as they are; `exempt`
        (n_rows,) is a clause that may be satisfied, -1 for none.
        """
        missing = np.arange(len(X))
        draws_left = _MAX_DRAWS_PER_ROW * max(len(X), 100)
        while True:
            satisfied = self.formula.satisfied(X[missing])
            satisfied &= np.arange(self.n_clauses) != exempt[missing, None]
            wrong = satisfied.any(axis=1)
            missing, satisfied = missing[wrong], satisfied[wrong]
            if not missing.size:
                return X
            draws_left -= missing.size
            if draws_left < 0:
                what = "no clause" if exempt.max() < 0 else "one given clause alone"
                raise ValueError(
                    f"Assignments that satisfy {what} are too rare, or there are none: "
                    f"n_clauses={self.n_clauses} of clause_size={self.clause_size} on "
                    f"n_variables={self.formula.n_variables}. Use fewer or larger "
                    "clauses, more variables, or another density."
                )
            redraw = np.zeros((missing.size, self.n_components), dtype=bool)
            row, clause = np.nonzero(satisfied)
            redraw[row, self.clause_component[clause]] = True
            redraw = redraw[:, self.variable_component] & ~fixed[missing]
            X[missing] = np.where(redraw, self.unconditional(missing.size), X[missing])
