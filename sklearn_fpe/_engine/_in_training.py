"""The state of a network in training: parameters, masks, scaling, history."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine._context import training_context
from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._net import Net, make_net
from sklearn_fpe._engine._recipe import History, Learned, Recipe, Settings, Targets
from sklearn_fpe._engine._rows import Rows
from sklearn_fpe._engine._shared import MAX_ARRANGED_BYTES, Shared
from sklearn_fpe._engine._streamed_rows import StreamedRows
from sklearn_fpe._engine._views import Sample, View
from sklearn_fpe._engine._world import SINGLE, World, digest
from sklearn_fpe.nn import MLP, Affine, BlockLinear
from sklearn_fpe.nn._expand import expand_to
from sklearn_fpe.nn._prune import PRUNES


class InTraining:
    """A network in training, on standardised inputs, and its scaling and history.

    Parameters
    ----------
    recipe, settings, targets : Recipe, Settings, Targets
        Of the training; a copy of the targets is kept.
    learned : Learned, default=None
        The training to continue; None: a fresh network.
    shared : Shared, default=None
        Rows and statistics that several trainings share.
    world : World, default=SINGLE
        The processes that train the same network, each on its own rows.

    Attributes
    ----------
    network : MLP
        The network. It shares its parameters with ``net.module_``, the network that
        computes, which may act on arranged columns.
    net : Net
        The skorch net that hosts the training.
    moments, affine, targets, phase, history
        See :class:`Learned`.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: Settings,
        targets: Targets,
        learned: Learned | None = None,
        shared: Shared | None = None,
        world: World = SINGLE,
    ) -> None:
        self.recipe, self.settings, self.world = recipe, settings, world
        self.targets, self.shared = copy.deepcopy(targets), shared
        if learned is None:
            self.phase, self.history = "warm-up", History()
            self.moments, self.affine = None, Affine.identity(recipe.shape.n_inputs)
        else:
            self.phase, self.history = learned.phase, learned.history
            self.moments, self.affine = learned.moments, learned.affine
        self.held: Rows | None = None  # rows to validate on
        is_registered = recipe.prune in PRUNES.values()
        with training_context(settings.device):
            if learned is None:
                generator = torch.Generator(device="cpu")
                generator.manual_seed(recipe.seeds.init)
                shape, activation = recipe.shape, recipe.activation
                network = MLP.dense(shape.widths, activation, generator, shape.skip)
            else:
                network = copy.deepcopy(learned.network)
                network.unfold_input(learned.affine)
            self.network: MLP = network.to(settings.device)
            self.net: Net = make_net(self.network, settings, self.targets)
            if self.phase == "warm-up" and (recipe.split.checked or not is_registered):
                # To fail before training if a user's rule does not fit.
                self._expanded()

    def learn_scale(self, sample: Sample) -> None:
        """Add rows to the statistics; the network stays the same function of X.

        Where a column was constant so far, that holds for the rows seen only.
        """
        with training_context(self.settings.device):
            trained = bool(self.history.losses)
            if self.settings.standardize:
                moments = self._moments_with(sample)
                affine = moments.affine()
                if trained and self.moments is not None:
                    constant = self.moments.constant()
                    scale = np.where(constant, affine.scale, self.affine.scale)
                    self.network.change_input(Affine(self.affine.mean, scale), affine)
                self.moments, self.affine = moments, affine
            before = self.targets.output_affine()
            self.targets.learn_scale(sample.y, sample.weights, self.world)
            if trained:
                self.network.change_output(before, self.targets.output_affine())
            else:
                # The mean, which is added to the output, predicts a constant exactly.
                rows = torch.from_numpy(self.targets.constant()).to(self.network.device)
                with torch.no_grad():
                    for layer in self.network.output_maps:
                        layer.weight[rows] = 0.0

    def _moments_with(self, sample: Sample) -> Moments:
        """Return the statistics of the inputs so far and of more rows."""

        def update() -> Moments:
            moments = copy.deepcopy(self.moments) or Moments(sample.view.shape[1])
            device, world = self.settings.device, self.world
            view, weights = sample.view, sample.weights
            return moments.update(view, weights, device=device, world=world)

        if self.moments is None and self.shared is not None:
            return self.shared.get(("moments", id(sample)), update)
        return update()

    def rows(self, sample: Sample, partition: bytes = b"") -> Rows:
        """Return the standardised rows of a sample.

        Among trainings that share rows, `partition` identifies their arrangement.
        """

        def make() -> Rows:
            targets = self.targets.encode(sample.y)
            weights = sample.training_weights(self.world)
            device = self.settings.device
            return make_rows(sample.view, targets, weights, self.affine, device)

        if self.shared is None:
            return make()
        key = (id(sample), self.settings.standardize, self.settings.device, partition)
        return self.shared.get(("rows", *key), make)

    def arrange(
        self, rows: Rows, train: Sample | None = None, held: Sample | None = None
    ) -> Rows:
        """Arrange the columns of the rows for the network's blocks; return the rows.

        Rows that other trainings use, too, are not changed. A copy is arranged instead,
        which the trainings of networks with the same partition share.
        """
        if self.settings.callbacks:
            return rows  # callbacks see the columns in the order of X
        first = self.network.layers[0]
        if (
            self.shared is not None
            and self.network.reorders_columns
            and isinstance(first, BlockLinear)
        ):
            if 4 * math.prod(rows.view.shape) > MAX_ARRANGED_BYTES:
                return rows
            assert train is not None
            partition = first.inputs.cpu().numpy().tobytes()
            rows = self.rows(train, partition)
            if held is not None:
                self.held = self.rows(held, partition)
        if self.held is not None:
            self.held.arrange(self.network)
        self._attach(rows.arrange(self.network))
        return rows

    def expand(self) -> None:
        """Expand the network and prune it to the budget."""
        if self.moments is not None:
            # Weights of constant columns are untrained; zero is pruned first.
            constant = torch.from_numpy(self.moments.constant()).to(self.network.device)
            with torch.no_grad():
                for layer in self.network.input_maps:
                    layer.weight[:, constant] = 0.0
        self.network = self._expanded()
        self.net.swap(self.network)
        self.phase = "fine-tune"
        self.check_equal()

    def learned(self) -> Learned:
        """Return the result of the training so far."""
        network = copy.deepcopy(self.network).eval().without_dead_units()
        network.fold_input(self.affine)
        parameters = [p.detach() for p in network.parameters() if p.numel()]
        largest = [p.abs().amax() for p in parameters]
        if not bool(torch.stack(largest).isfinite().all()):
            raise self.diverged("The weights became infinite.")
        return Learned(
            self.recipe,
            network,
            self.affine,
            self.moments,
            # A copy, because further rows must not change the result.
            copy.deepcopy(self.targets),
            self.phase,
            self.history,
        )

    def restore(self, state: dict, score: float, best_iter: int | None) -> None:
        """Give the network earlier weights back, and record their score."""
        state = state.copy()
        for name, buffer in self.network.named_buffers():
            if name.endswith(".mask"):
                # All weights were kept before the layer got a mask.
                state.setdefault(name, torch.ones_like(buffer))
        self.network.load_state_dict(state)
        if self.net.flat_ is not None:
            self.net.flat_.follow_masks()
        self.history = replace(
            self.history, best_score=score, best_iter=best_iter, refitted=False
        )

    @torch.no_grad()
    def set_masks(self, masks: dict[int, Tensor]) -> None:
        """Change which weights are kept.

        The vector that trains follows, and so do the optimizer's running means, which
        begin at zero again for weights whose mask changed.

        Parameters
        ----------
        masks : dict
            Maps numbers of layers to bool tensors of the shape of the layer's `weight`,
            True for weights to keep. If one of them is not possible, none is changed.
        """
        for level, mask in masks.items():
            self.network.maps[level].check_mask(mask)
        changed = {}
        for level, mask in masks.items():
            layer = self.network.masked(level)
            before = torch.ones_like(mask) if layer.mask is None else layer.mask.clone()
            layer.set_mask(mask)
            changed[level] = before != mask
        self._attach(self.net.module_ is not self.network)
        for level, where in changed.items():
            for mean in self.optimizer_state(level).values():
                mean.masked_fill_(where, 0)

    def optimizer_state(self, level: int) -> dict[str, Tensor]:
        """Return AdamW's running means for the weight of layer `level`.

        ``"exp_avg"`` is the running mean of gradients, ``"exp_avg_sq"`` that of squared
        gradients: views of the shape of the weight. Empty before the first step.
        """
        weight, flat = self.network.maps[level].weight, self.net.flat_
        state = self.net.optimizer_.state.get(weight if flat is None else flat.vector)
        means = {name: state[name] for name in ("exp_avg", "exp_avg_sq") if state}
        if flat is None:
            return means
        place = flat.places[weight]
        return {name: mean[place].view(weight.shape) for name, mean in means.items()}

    def _expanded(self) -> MLP:
        recipe = self.recipe
        return expand_to(
            self.network,
            recipe.shape,
            recipe.budget,
            recipe.split,
            prune=recipe.prune,
            groups=recipe.groups,
            rng=recipe.seeds.split,
        )

    def _attach(self, arranged: bool) -> None:
        """Let the net compute with the present network and masks."""
        self.net.module_ = self.network.arranged() if arranged else self.network
        if self.net.flat_ is not None:
            self.net.flat_.network = self.net.module_
            self.net.flat_.follow_masks()

    def check_equal(self) -> None:
        """Check that all processes hold the same network, to the bit."""
        if self.world.size > 1:
            self.world.check_equal(
                digest(self.network.state_dict().values()),
                f"networks in the {self.phase}",
                " Use the same versions of torch and NumPy everywhere; on processors "
                "of several kinds, set ATEN_CPU_CAPABILITY=default.",
            )

    def diverged(self, symptom: str) -> FloatingPointError:
        """Return the error of a training whose numbers became infinite."""
        return FloatingPointError(
            f"{symptom} Lower learning_rate_init (it is "
            f"{self.settings.learning_rate_init:g}), keep standardize=True, and look "
            f"for extreme values in X or y."
        )


def make_rows(
    view: View,
    targets: Tensor,
    weights: np.ndarray,
    affine: Affine,
    device: torch.device,
) -> Rows:
    """Make :class:`Rows`, or :class:`StreamedRows` if the rows must not be loaded."""
    kind = StreamedRows if view.streamed else Rows
    return kind(view, targets, weights, affine, device)
