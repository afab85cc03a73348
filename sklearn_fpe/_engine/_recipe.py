"""The inputs and the result of a training, as frozen objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from sklearn_fpe._engine._loss import Loss
from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._rules import RULES, rule_from_state, rule_to_state
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
from sklearn_fpe.nn._state import (
    array,
    choice,
    flag,
    integer,
    listing,
    record,
    require,
)


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
        """Return the seeds of a network of an ensemble; the first has these seeds.

        Initial weights and splits differ between networks, the order of rows does not.
        """
        if number == 0:
            return self
        entropy = (self.init, self.split, number)
        init, split = np.random.SeedSequence(entropy).generate_state(2)
        return replace(self, init=int(init), split=int(split))


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the network; constant while training goes on."""

    shape: Shape  # of the expanded network
    budget: int  # non-zero parameters, biases included
    split: SplitRule
    prune: PruneRule
    groups: Any  # label of every input, for split rules that need them, or None
    activation: Activation  # of the hidden layers
    seeds: Seeds

    def of_member(self, number: int) -> Recipe:
        """Return the recipe of a network of an ensemble, counted from 0.

        All networks read the same batches and hold the same rows out.
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
        """Make a recipe of a state, and check it; messages call it `name`."""
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
    """How to train; may change between two calls."""

    loss: Loss
    max_iter: int  # epochs of a fit, warm-up included
    n_warmup: int  # epochs, or calls of partial_fit, before the expansion
    batch_size: int | None  # None: see rows_per_step
    learning_rate: str  # "constant" or "cosine", see rate_at
    learning_rate_init: float
    weight_decay: float  # decoupled, per unit of learning rate
    standardize: bool  # inputs
    bfloat16: bool  # matrix products
    device: torch.device
    callbacks: tuple = ()  # of skorch
    tf32: bool = False  # matrix products on CUDA
    warm_up_decay: float | None = None  # None: weight_decay in the warm-up, too

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
        """Return the settings that a net in training cannot change."""
        return self.loss, self.device, self.bfloat16, self.callbacks


class Targets(Protocol):
    """The methods of targets that the training calls."""

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
        """Learn location and scale of more targets, over all processes."""

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
    """The record of a training."""

    losses: tuple[float, ...] = ()  # mean training loss of every epoch
    # Mean loss and score of the held-out rows after every epoch of fine-tuning.
    validation_losses: tuple[float, ...] = ()
    validation_scores: tuple[float, ...] = ()
    best_score: float = -math.inf  # of the weights that were kept
    # Epoch whose weights were kept, counted from 1 over the last fit; 0: weights of an
    # earlier fit were; None: nothing was validated.
    best_iter: int | None = None
    n_iter: int = 0  # epochs of the last fit, and calls of partial_fit since
    refitted: bool = False  # whether trained on the held-out rows as well

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
        """Make a record of a state, and check it; messages call it `name`."""
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
    """The result of a training."""

    recipe: Recipe
    network: MLP  # acts on inputs that are not standardised
    affine: Affine  # standardisation of the inputs in training, folded into the network
    moments: Moments | None  # statistics of the inputs; None without standardisation
    targets: Targets
    phase: str  # "warm-up", or "fine-tune" once the network is expanded
    history: History = field(default_factory=History)
    others: tuple[Learned, ...] = ()  # results of the other networks of an ensemble

    @property
    def members(self) -> tuple[Learned, ...]:
        """The result of every network of an ensemble, or of the only network."""
        return (replace(self, others=()), *self.others) if self.others else (self,)

    @classmethod
    def join(cls, members: Sequence[Learned]) -> Learned:
        """Return the results of several networks as one, see :attr:`members`."""
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
            other.history,
            losses=self.history.losses,
            n_iter=self.history.n_iter,
            refitted=True,
        )
        return replace(self, history=history)

    def to_state(self) -> dict[str, Any]:
        """Return the result as dicts, lists, arrays and plain values.

        Pickles and model files hold this state, so that they do not depend on the
        classes of this library. A user's own rules stay objects.
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
        """Make a result of a state, and check it; messages call it `name`.

        `make_targets` makes the targets of their state and their name in messages. The
        network is on the CPU.
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
        """Make the result of one network of its state, and check it."""
        recipe, network, moments, phase, history, affine, targets = record(
            state,
            name,
            ("recipe", "network", "moments", "phase", "history", "affine", "targets"),
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
