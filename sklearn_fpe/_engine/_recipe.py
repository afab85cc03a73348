"""What goes into a training, and what comes out: frozen objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from sklearn_fpe._engine._loss import Loss
from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._world import World
from sklearn_fpe.nn import (
    MLP,
    Activation,
    Affine,
    Ensemble,
    PruneRule,
    Shape,
    SplitRule,
)
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS
from sklearn_fpe.nn._state import (
    array,
    choice,
    flag,
    integer,
    listing,
    record,
    require,
)

RULES: dict[str, dict[str, Any]] = {
    "split": SPLITS,
    "prune": PRUNES,
    "activation": ACTIVATIONS,
}
"""The registered rules of a recipe, by the recipe's field and by name."""


def rule_to_state(field: str, rule: Any) -> Any:
    """Return a registered rule as its name, or as a dict of its name and parameters.

    A rule of the user's own is returned as it is.

    Parameters
    ----------
    field : {"split", "prune", "activation"}
        Field of a recipe.
    rule : SplitRule, PruneRule, Activation or another
        The rule; what is not registered stays what it is.
    """
    name = getattr(rule, "name", None)
    known = RULES[field].get(name) if isinstance(name, str) else None
    if known is None or type(known) is not type(rule):
        return rule
    if known == rule:
        return rule.name
    # Parameters are all that two rules of a class of prune rules can differ in.
    return {"rule": rule.name, **vars(rule)} if field == "prune" else rule


def rule_from_state(field: str, state: Any, name: str) -> Any:
    """Return the rule of what :func:`rule_to_state` returned, and check it."""
    rules = RULES[field]
    if isinstance(state, dict) and field == "prune":
        known = rules[choice(state.get("rule"), f"{name}.rule", rules)]
        record(state, name, ("rule", *vars(known)))
        parameters = {key: state[key] for key in vars(known)}
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


@dataclass(frozen=True)
class Seeds:
    """Seeds of independent random streams, so that one use moves no other."""

    init: int
    split: int
    shuffle: int
    validation: int

    @classmethod
    def spawn(cls, entropy: int | None) -> Seeds:
        """Derive the seeds from one number; None: from fresh entropy."""
        state = np.random.SeedSequence(entropy).generate_state(4)
        return cls(*(int(seed) for seed in state))

    def of_member(self, number: int) -> Seeds:
        """Return the seeds of a network of an ensemble; those of the first are these.

        They differ in initial weights and split, not in the order of the rows.
        """
        if number == 0:
            return self
        entropy = (self.init, self.split, number)
        init, split = np.random.SeedSequence(entropy).generate_state(2)
        return replace(self, init=int(init), split=int(split))


@dataclass(frozen=True)
class Recipe:
    """What shapes the network: it stays the same while training goes on.

    Parameters
    ----------
    shape : Shape
        Shape of the expanded network.
    budget : int
        Non-zero parameters, biases included.
    split : SplitRule
        How input edges are partitioned.
    prune : PruneRule
        How the network is pruned to the budget.
    groups : array-like or None
        Group label of every input, for split rules that need them.
    activation : Activation
        Activation of the hidden layers.
    seeds : Seeds
        Random streams.
    """

    shape: Shape
    budget: int
    split: SplitRule
    prune: PruneRule
    groups: Any
    activation: Activation
    seeds: Seeds

    def of_member(self, number: int) -> Recipe:
        """Return the recipe of a network of an ensemble, counted from 0.

        Networks differ in their initial weights and their splits. They read the same
        batches and hold the same rows out.
        """
        return replace(self, seeds=self.seeds.of_member(number))

    def to_state(self) -> dict[str, Any]:
        """Return the recipe as a dict of plain values; see :func:`rule_to_state`."""
        return {
            "shape": asdict(self.shape),
            "budget": self.budget,
            **{name: rule_to_state(name, getattr(self, name)) for name in RULES},
            "groups": self.groups,
            "seeds": asdict(self.seeds),
        }

    @classmethod
    def from_state(cls, state: Any, n_inputs: int, n_outputs: int, name: str) -> Recipe:
        """Make a recipe of what :meth:`to_state` returned, and check it.

        Parameters
        ----------
        state : dict
            The recipe; rules are as :func:`rule_from_state` takes them.
        n_inputs, n_outputs : int
            Inputs and outputs of the network.
        name : str
            Name of the recipe in messages.
        """
        fields = ("shape", "budget", "groups", "seeds", *RULES)
        shape, budget, groups, seeds, *rules = record(state, name, fields)
        streams = list(Seeds.__dataclass_fields__)
        seeds = record(seeds, f"{name}.seeds", streams)
        for stream, seed in zip(streams, seeds, strict=True):
            integer(seed, f"{name}.seeds.{stream}", 0, 2**32 - 1)
        return cls(
            shape=Shape.from_state(shape, n_inputs, n_outputs, f"{name}.shape"),
            budget=integer(budget, f"{name}.budget", 1),
            groups=groups,
            seeds=Seeds(*seeds),
            **{
                field: rule_from_state(field, rule, f"{name}.{field}")
                for field, rule in zip(RULES, rules, strict=True)
            },
        )


@dataclass(frozen=True)
class Settings:
    """How to train; may change between two calls.

    Parameters
    ----------
    loss : Loss
        What is minimised.
    max_iter : int
        Epochs of a fit, warm-up included; the learning rate's course covers them.
    n_warmup : int
        Epochs, or calls of ``partial_fit``, before the expansion.
    batch_size : int or None
        Rows per step; None: a sixteenth of the rows, see :meth:`rows_per_step`.
    learning_rate : {"constant", "cosine"}
        Course of the learning rate over the epochs.
    learning_rate_init : float
        Learning rate at the start.
    weight_decay : float
        Decoupled weight decay, per unit of learning rate.
    standardize : bool
        Whether inputs are standardised.
    bfloat16 : bool
        Whether matrix products are in bfloat16.
    device : torch.device
        Where to train.
    callbacks : tuple
        skorch callbacks.
    tf32 : bool
        Whether matrix products on CUDA are in TF32.
    warm_up_decay : float, default=None
        Weight decay of the warm-up; None: `weight_decay`.
    """

    loss: Loss
    max_iter: int
    n_warmup: int
    batch_size: int | None
    learning_rate: str
    learning_rate_init: float
    weight_decay: float
    standardize: bool
    bfloat16: bool
    device: torch.device
    callbacks: tuple = ()
    tf32: bool = False
    warm_up_decay: float | None = None

    def decay_in(self, phase: str) -> float:
        """Return the weight decay of a phase."""
        if phase == "warm-up" and self.warm_up_decay is not None:
            return self.warm_up_decay
        return self.weight_decay

    def rate_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch.

        Half a cosine from the initial rate down to zero over `max_iter` epochs, taken
        at the middle of the epoch (Loshchilov and Hutter, 2017), or constant.
        """
        if self.learning_rate == "constant":
            return self.learning_rate_init
        progress = (epoch + 0.5) / self.max_iter
        return self.learning_rate_init * 0.5 * (1 + math.cos(math.pi * progress))

    def rows_per_step(self, n_rows: int) -> int:
        """Return the batch size for a number of rows.

        By default the power of two nearest to a sixteenth of the rows, from 16 to 256.
        """
        if self.batch_size is not None:
            return min(n_rows, self.batch_size)
        return min(n_rows, 2 ** round(math.log2(min(256, max(16, n_rows / 16)))))

    def net(self) -> tuple:
        """Return what a net in training was made with."""
        return self.loss, self.device, self.bfloat16, self.callbacks


class Targets(Protocol):
    """What the engine needs to know of the targets."""

    n_columns: int
    rows_to_score: int
    link: str

    def encode(self, y: np.ndarray) -> torch.Tensor:
        """Turn checked targets into a tensor for the loss."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Turn encoded targets back."""

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        """Turn raw outputs into predictions."""

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Turn raw outputs into probabilities."""

    def learn_scale(self, y: np.ndarray, weights: np.ndarray, world: World) -> None:
        """Learn location and scale of more targets, those of all processes."""

    def output_affine(self) -> Affine:
        """Return the standardisation of the targets."""

    def constant(self) -> np.ndarray:
        """Tell which columns are constant, bool (n_columns,)."""

    def to_state(self) -> dict[str, Any]:
        """Return the targets as a dict of plain values and arrays."""


COUNTS = ("best_iter", "n_iter", "refitted")
"""The fields of :class:`History` that are integers, bools or None."""


@dataclass(frozen=True)
class History:
    """The record of a training.

    Parameters
    ----------
    losses : tuple of float
        Mean training loss of every epoch.
    validation_losses, validation_scores : tuple of float
        Mean loss and score of the held-out rows after every epoch of fine-tuning.
    best_score : float
        Validation score of the weights that were kept; -inf without validation.
    best_iter : int or None
        Epoch, counted from 1 over the last fit, whose weights were kept; 0 if those of
        an earlier fit were.
    n_iter : int
        Epochs of the last fit, and calls of ``partial_fit`` since.
    refitted : bool
        Whether the weights were trained on the rows that were held out as well.
    """

    losses: tuple[float, ...] = ()
    validation_losses: tuple[float, ...] = ()
    validation_scores: tuple[float, ...] = ()
    best_score: float = -math.inf
    best_iter: int | None = None
    n_iter: int = 0
    refitted: bool = False

    def without_validation(self) -> History:
        """Return the record without scores, which do not hold for new weights."""
        return History(losses=self.losses, n_iter=self.n_iter)

    def to_state(self) -> dict[str, Any]:
        """Return the record as a dict, numbers that may be infinite as arrays."""
        return {
            name: value if name in COUNTS else np.array(value, dtype=np.float64)
            for name, value in vars(self).items()
        }

    @classmethod
    def from_state(cls, state: Any, name: str) -> History:
        """Make a record of what :meth:`to_state` returned, and check it."""
        curves = ("losses", "validation_losses", "validation_scores")
        fields = (*curves, "best_score", *COUNTS)
        *values, score, best, n_iter, refitted = record(state, name, fields)
        losses, val_losses, val_scores = (
            tuple(array(value, f"{name}.{field}", np.float64, (None,)).tolist())
            for field, value in zip(curves, values, strict=True)
        )
        return cls(
            losses=losses,
            validation_losses=val_losses,
            validation_scores=val_scores,
            best_score=float(array(score, f"{name}.best_score", np.float64, ())),
            best_iter=None if best is None else integer(best, f"{name}.best_iter"),
            n_iter=integer(n_iter, f"{name}.n_iter", 0, len(losses)),
            refitted=flag(refitted, f"{name}.refitted"),
        )


@dataclass(frozen=True)
class Learned:
    """What a training has learned.

    Parameters
    ----------
    recipe : Recipe
        What it was made with.
    network : MLP
        The network; acts on inputs as they are, not standardised.
    affine : Affine
        The standardisation of the inputs in training; folded into `network`.
    moments : Moments or None
        Statistics of the inputs; None without standardisation.
    targets : Targets
        Labels, or location and scale of real targets.
    phase : {"warm-up", "fine-tune"}
        Whether the network is expanded yet.
    history : History
        The record of the training.
    others : tuple of Learned
        What the other networks of an ensemble have learned.
    """

    recipe: Recipe
    network: MLP
    affine: Affine
    moments: Moments | None
    targets: Targets
    phase: str
    history: History = field(default_factory=History)
    others: tuple[Learned, ...] = ()

    @property
    def members(self) -> tuple[Learned, ...]:
        """What each network has learned: of an ensemble, several."""
        return (replace(self, others=()), *self.others) if self.others else (self,)

    @classmethod
    def join(cls, members: Sequence[Learned]) -> Learned:
        """Return what networks have learned as one object, see :attr:`members`."""
        first, *others = members
        return replace(first, others=tuple(others))

    @property
    def predictor(self) -> MLP | Ensemble:
        """The network, or the networks of an ensemble as one."""
        if not self.others:
            return self.network
        networks = [member.network for member in self.members]
        return Ensemble(networks, self.targets.link)

    @property
    def expansion(self) -> tuple[int, ...]:
        """Children per parent of each hidden layer: 1 before the expansion."""
        shape = self.recipe.shape
        return (shape if self.phase == "fine-tune" else shape.parent()).expansion

    def with_validation(self, other: Learned) -> Learned:
        """Return this refit with the record of the training that was validated."""
        history = replace(
            self.history,
            validation_losses=other.history.validation_losses,
            validation_scores=other.history.validation_scores,
            best_score=other.history.best_score,
            best_iter=other.history.best_iter,
            refitted=True,
        )
        return replace(self, history=history)

    def to_state(self) -> dict[str, Any]:
        """Return all of it as dicts, lists, arrays and plain values.

        A pickle and a model file are made of it, so that neither depends on the
        classes of this library. Rules of the user's own stay objects.
        """
        return {
            "recipe": self.recipe.to_state(),
            "network": self.network.to_state(),
            "affine": self.affine.to_state(),
            "moments": None if self.moments is None else self.moments.to_state(),
            "targets": self.targets.to_state(),
            "phase": self.phase,
            "history": self.history.to_state(),
        } | ({"others": [m.to_state() for m in self.others]} if self.others else {})

    @classmethod
    def from_state(
        cls, state: Any, make_targets: Callable[[Any, str], Targets], name: str
    ) -> Learned:
        """Make one of what :meth:`to_state` returned, and check it.

        Parameters
        ----------
        state : dict
            What was learned.
        make_targets : callable
            Makes the targets of their state and their name in messages.
        name : str
            Name of it in messages.

        Returns
        -------
        learned : Learned
            What was learned, with the network on the CPU.
        """
        others = state.get("others", ()) if isinstance(state, dict) else ()
        listing(others, f"{name}.others")
        if others:
            state = {key: part for key, part in state.items() if key != "others"}
        names = [name, *(f"{name}.others.{i}" for i in range(len(others)))]
        pairs = zip((state, *others), names, strict=True)
        members = [cls._single(part, make_targets, key) for part, key in pairs]
        for member in members:
            member._check(members[0])
        return cls.join(members)

    def _check(self, first: Learned) -> None:
        """Check a network against its phase, its budget and the first network."""
        network, recipe = self.network, self.recipe
        fits = recipe.shape == first.recipe.shape and self.phase == first.phase
        require(fits, "All networks must have the same shape and phase")
        if self.phase == "fine-tune":
            # Biases of outputs that were pruned do not count.
            integer(network.n_nonzero, "The number of parameters", 1, recipe.budget)
            return
        in_order = [torch.arange(n, device="cpu") for n in recipe.shape.hidden]
        fits = all(map(torch.equal, network.parents, in_order))
        fits = fits and all(layer.kind == "dense" for layer in network.maps)
        require(fits, "In the warm-up all layers must be dense")

    @classmethod
    def _single(
        cls, state: Any, make_targets: Callable[[Any, str], Targets], name: str
    ) -> Learned:
        """Make what one network has learned of its state, and check it."""
        parts = (
            "recipe",
            "network",
            "moments",
            "phase",
            "history",
            "affine",
            "targets",
        )
        recipe, network, moments, phase, history, affine, targets = record(
            state, name, parts
        )
        affine = Affine.from_state(affine, f"{name}.affine")
        targets = make_targets(targets, f"{name}.targets")
        n = len(affine.mean)
        recipe = Recipe.from_state(recipe, n, targets.n_columns, f"{name}.recipe")
        if moments is not None:
            moments = Moments.from_state(moments, n, f"{name}.moments")
        return cls(
            recipe,
            MLP.from_state(network, recipe.activation, recipe.shape, f"{name}.network"),
            affine,
            moments,
            targets,
            choice(phase, f"{name}.phase", ("warm-up", "fine-tune")),
            History.from_state(history, f"{name}.history"),
        )
