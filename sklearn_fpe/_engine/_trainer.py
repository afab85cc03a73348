"""The training: warm up, expand, fine-tune."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_fpe._engine._cache import StoppedError, Warm, WarmUpCache
from sklearn_fpe._engine._context import training_context
from sklearn_fpe._engine._deal import Deal, deal
from sklearn_fpe._engine._graph import may_record
from sklearn_fpe._engine._hooks import Hook, StepHooks
from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._net import Net, make_net
from sklearn_fpe._engine._recipe import History, Learned, Recipe, Settings, Targets
from sklearn_fpe._engine._rows import Rows, make_rows
from sklearn_fpe._engine._shared import MAX_ARRANGED_BYTES, Shared
from sklearn_fpe._engine._views import Sample
from sklearn_fpe._engine._world import SINGLE, World, digest
from sklearn_fpe.nn import MLP, Affine, BlockLinear
from sklearn_fpe.nn._expand import expand_to
from sklearn_fpe.nn._prune import PRUNES

PREDICTION_ROWS = 4096
"""Held-out rows that are predicted at a time."""

Training = Generator["Epoch", None, Any]
"""A training that yields each epoch, which somebody else runs, and returns a result."""


@dataclass(frozen=True, eq=False)
class Epoch:
    """An epoch that a training waits for.

    Run it by :meth:`Trainer.run_epoch`, or together with epochs of other networks.

    Parameters
    ----------
    trainer : Trainer
        The network in training.
    rows : Rows
        The rows to train on.
    rate : float
        The learning rate.
    """

    trainer: Trainer
    rows: Rows
    rate: float


def run_alone(training: Training) -> Any:
    """Run a training epoch by epoch; return its result."""
    while True:
        try:
            epoch = next(training)
        except StopIteration as end:
            return end.value
        epoch.trainer.run_epoch(epoch)


class Trainer:
    """A network in training, on standardised inputs, and the record of it.

    Parameters
    ----------
    recipe : Recipe
        What shapes the network.
    settings : Settings
        How to train.
    targets : Targets
        The targets; a copy is kept.
    learned : Learned, default=None
        What to continue from; None: a fresh network.
    shared : Shared, default=None
        What it has in common with other trainings; None: nothing.
    world : World, default=SINGLE
        The processes that train the same network, each on its own rows.

    Attributes
    ----------
    network : MLP
        The network. It shares its parameters with ``net.module_``, the network that
        computes, which may act on arranged columns.
    phase : {"warm-up", "fine-tune"}
        Whether the network is expanded yet.
    epochs : range
        The epochs of the running phase.
    from_cache : bool
        Whether the running phase is taken from a cache.
    settled : bool
        Whether the network may be kept as it is; not while it is pruned gradually.
    epoch, n_epochs : int
        The running epoch of a fit, counted from 0, and their number.
    step, n_steps : int
        The running step of the phase, counted from 0, and their number.
    loss : float
        Mean training loss of the last epoch.
    validation_score : float or None
        Score of the held-out rows after the last epoch.
    loaded : bool
        Whether a skorch callback replaced the weights at the end of the last phase.
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
        self.recipe, self.settings, self._shared = recipe, settings, shared
        self.world = world
        self.targets = copy.deepcopy(targets)
        n_inputs = recipe.shape.n_inputs
        if learned is None:
            self.phase, self.history = "warm-up", History()
            self.moments, self.affine = None, Affine.identity(n_inputs)
        else:
            self.phase, self.history = learned.phase, learned.history
            self.moments, self.affine = learned.moments, learned.affine
        with training_context(settings.device):
            self.network: MLP = self._make_network(learned).to(settings.device)
            self.net: Net = make_net(
                self.network,
                settings.loss,
                lr=settings.learning_rate_init,
                weight_decay=settings.weight_decay,
                device=settings.device,
                callbacks=copy.deepcopy(list(settings.callbacks)) or None,
                targets=self.targets,
                bfloat16=settings.bfloat16,
            )
        self.epochs, self.from_cache, self.settled = range(0), False, True
        self.epoch = self.n_epochs = self.step = self.n_steps = 0
        self.loss = math.nan
        self.validation_score: float | None = None
        self.loaded = False
        self._held: Rows | None = None
        is_registered = recipe.prune in PRUNES.values()
        if self.phase == "warm-up" and (recipe.split.checked or not is_registered):
            # To fail before training if a user's rule does not fit.
            with training_context(settings.device):
                self._expanded()

    def _make_network(self, learned: Learned | None) -> MLP:
        """Make a fresh network, or a copy of a learned one, on standardised inputs."""
        recipe = self.recipe
        if learned is None:
            generator = torch.Generator(device="cpu").manual_seed(recipe.seeds.init)
            shape = recipe.shape
            return MLP.dense(
                shape.widths, recipe.activation, generator, skip=shape.skip
            )
        network = copy.deepcopy(learned.network)
        network.unfold_input(learned.affine)
        return network

    # ----------------------------------------------------------------------------------
    # What an estimator calls
    # ----------------------------------------------------------------------------------

    def learn_scale(self, sample: Sample) -> None:
        """Add rows to the statistics; the network stays the function it is.

        Where a column was constant so far, it stays that function of all rows seen.
        """
        with training_context(self.settings.device):
            self._learn_scale(sample)

    def _learn_scale(self, sample: Sample) -> None:
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
        if self.moments is not None:
            moments = copy.deepcopy(self.moments)
            return moments.update(
                sample.view,
                sample.weights,
                device=self.settings.device,
                world=self.world,
            )
        moments = Moments(sample.view.shape[1])
        if self._shared is None:
            return moments.update(
                sample.view,
                sample.weights,
                device=self.settings.device,
                world=self.world,
            )
        return self._shared.get(
            ("moments", id(sample)),
            lambda: moments.update(
                sample.view,
                sample.weights,
                device=self.settings.device,
                world=self.world,
            ),
        )

    def fit(self, *args: Any, **kwargs: Any) -> Learned:
        """Run the phases that are left; takes what :meth:`training` takes."""
        with training_context(self.settings.device, self.settings.tf32):
            return run_alone(self.training(*args, **kwargs))

    def training(
        self,
        train: Sample,
        held: Sample | None = None,
        *,
        hooks: Sequence[Hook] = (),
        cache: Callable[[dict], WarmUpCache] | None = None,
        n_epochs: int | None = None,
    ) -> Training:
        """Run the phases that are left, and yield every epoch for somebody to run.

        Must be resumed in a :func:`training_context` of the device.

        Parameters
        ----------
        train : Sample
            Rows to train on.
        held : Sample, default=None
            Rows to validate on.
        hooks : sequence of Hook, default=()
            What to call between steps and epochs.
        cache : callable, default=None
            Maps what the trainer knows of a warm-up, a dict, to the cache to take it
            from.
        n_epochs : int, default=None
            Epochs to run of those that the learning rate's course covers; None: all.

        Returns
        -------
        learned : Learned
            What was learned.
        """
        settings = self.settings
        rows = self._rows(train)
        self._held = None if held is None else self._rows(held)
        self.history = replace(self.history, n_iter=0)
        if held is None:
            self.history = self.history.without_validation()
        self.n_epochs = settings.max_iter
        last = settings.max_iter if n_epochs is None else n_epochs
        first = 0
        if self.phase == "warm-up":
            first = max(0, settings.n_warmup - len(self.history.losses))
            warm_up = range(min(first, last))
            yield from self._warm_up(rows, warm_up, hooks, cache, train)
            self.expand()
        rows = self._arrange(rows, train, held)
        pruning = self.recipe.prune.hook(self.recipe)
        if pruning is not None:
            hooks = [pruning, *hooks]
        yield from self._run(rows, range(first, max(first, last)), hooks)
        return self.learned()

    def warming(self, train: Sample, n_epochs: int) -> Training:
        """Train the dense parent alone, yielding epochs; return its weights and losses.

        Its result is what a cache stores, see :meth:`training`.
        """
        self.n_epochs = self.settings.max_iter
        yield from self._run(self._rows(train), range(n_epochs), ())
        return self._warm()

    def _warm(self) -> Warm:
        state = self.network.state_dict()
        state = {name: value.cpu().numpy() for name, value in state.items()}
        return state, list(self.history.losses)

    def partial_fit(self, sample: Sample) -> Learned:
        """Run one epoch on some rows at a constant learning rate."""
        with training_context(self.settings.device, self.settings.tf32):
            if self.phase == "warm-up":
                self.learn_scale(sample)
                if len(self.history.losses) >= self.settings.n_warmup:
                    self.expand()
            rows = self._rows(sample)
            self._arrange(rows)
            self._dealt = self._deal(rows)
            self.history = self.history.without_validation()
            self.net.notify("on_train_begin", X=None, y=None)
            self.run_epoch(Epoch(self, rows, self.settings.learning_rate_init))
            self._check_loss()
            self.net.notify("on_train_end", X=None, y=None)
            self._check_equal_networks()
            return self.learned()

    def learned(self) -> Learned:
        """Return what was learned, as if the training had ended now."""
        network = copy.deepcopy(self.network).eval().without_dead_units()
        network.fold_input(self.affine)
        parameters = [p.detach() for p in network.parameters() if p.numel()]
        largest = [p.abs().amax() for p in parameters]
        if not bool(torch.stack(largest).isfinite().all()):
            raise self._diverged("The weights became infinite.")
        return Learned(
            self.recipe,
            network,
            self.affine,
            self.moments,
            # A copy, because further rows must not change what was returned.
            copy.deepcopy(self.targets),
            self.phase,
            self.history,
        )

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
        self._check_equal_networks()

    # ----------------------------------------------------------------------------------
    # What hooks call
    # ----------------------------------------------------------------------------------

    @property
    def n_iter(self) -> int:
        """Epochs of the running fit so far."""
        return self.history.n_iter

    def validate(
        self, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[np.ndarray, float]:
        """Return outputs and mean loss of the held-out rows.

        The loss is that of the rows of all processes, the outputs those of this one.

        Parameters
        ----------
        reduce : callable, default=None
            Maps outputs (n_rows, n_outputs) to the tensor that is needed of them, so
            that the host waits for the device once, and less is copied. None: all.

        Returns
        -------
        outputs : ndarray
            Outputs (n_rows, n_outputs), or what `reduce` made of them.
        loss : float
            Mean loss.
        """
        assert self._held is not None
        network = self.net.module_.eval()
        with torch.inference_mode():
            batches = self._held.batches(PREDICTION_ROWS)
            outputs = torch.cat([network(x) for x, _ in batches])
            loss = self.settings.loss(outputs, self._held.targets, self._held.weights)
            if reduce is None:
                array, value = outputs.cpu().numpy(), float(loss)
                finite = bool(np.isfinite(array).all())
            else:
                needed = reduce(outputs)
                flags = torch.stack([loss.double(), outputs.isfinite().all().double()])
                # In one copy, as float64, which holds float32 and class numbers.
                copied = torch.cat([needed.flatten().double(), flags]).cpu()
                array = copied[:-2].to(needed.dtype).view(needed.shape).numpy()
                value, finite = float(copied[-2]), bool(copied[-1])
        if not finite:
            raise self._diverged("The outputs for validation rows became infinite.")
        n_rows = len(self._held)
        return array, self.world.mean(value, n_rows, "validation losses")

    def record_validation(self, score: float, loss: float) -> None:
        """Add a score and a loss of the held-out rows to the history."""
        self.validation_score = score
        self.history = replace(
            self.history,
            validation_scores=(*self.history.validation_scores, score),
            validation_losses=(*self.history.validation_losses, loss),
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

        Everything that depends on the masks follows: the vector that trains, and the
        running means of the optimizer, which begin anew for weights whose mask changed.

        Parameters
        ----------
        masks : dict
            For some layers, by their number, the kept weights, a bool tensor of the
            shape of the layer's `weight`. If one of them is not possible, none is
            changed.
        """
        for level, mask in masks.items():
            self.network.maps[level].check_mask(mask)
        changed = {}
        for level, mask in masks.items():
            layer = self.network.masked(level)
            before = torch.ones_like(mask) if layer.mask is None else layer.mask.clone()
            layer.set_mask(mask)
            changed[layer.weight] = before != mask
        self._attach(self.net.module_ is not self.network)
        for weight, where in changed.items():
            for mean in self._running_means(weight).values():
                mean.masked_fill_(where, 0)

    def optimizer_state(self, level: int) -> dict[str, Tensor]:
        """Return the running means that AdamW keeps for the weight of a layer.

        Parameters
        ----------
        level : int
            Number of the layer in ``network.maps``.

        Returns
        -------
        state : dict
            ``"exp_avg"``, the running mean of gradients, and ``"exp_avg_sq"``, that of
            squared gradients: views of the shape of the weight. Empty before the first
            step.
        """
        return self._running_means(self.network.maps[level].weight)

    def _running_means(self, weight: nn.Parameter) -> dict[str, Tensor]:
        flat = self.net.flat_
        state = self.net.optimizer_.state.get(weight if flat is None else flat.vector)
        means = {name: state[name] for name in ("exp_avg", "exp_avg_sq") if state}
        if flat is None:
            return means
        place = flat.places[weight]
        return {name: mean[place].view(weight.shape) for name, mean in means.items()}

    # ----------------------------------------------------------------------------------
    # Epochs
    # ----------------------------------------------------------------------------------

    def _rows(self, sample: Sample, partition: bytes = b"") -> Rows:
        """Return the rows of a sample, standardised.

        `partition` tells apart rows that are arranged in different ways.
        """

        def make() -> Rows:
            return make_rows(
                sample.view,
                self.targets.encode(sample.y),
                sample.training_weights(self.world),
                self.affine,
                self.settings.device,
            )

        if self._shared is None:
            return make()
        key = (id(sample), self.settings.standardize, self.settings.device, partition)
        return self._shared.get(("rows", *key), make)

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

    def _arrange(
        self, rows: Rows, train: Sample | None = None, held: Sample | None = None
    ) -> Rows:
        """Arrange the columns of rows that are used again and again; return the rows.

        Rows that other trainings use, too, stay as they are: arranged are others, which
        trainings of networks with the same partition share.
        """
        if self.settings.callbacks:
            return rows  # callbacks see the network and the columns as they are
        first = self.network.layers[0]
        if (
            self._shared is not None
            and self.network.reorders_columns
            and isinstance(first, BlockLinear)
        ):
            if 4 * math.prod(rows.view.shape) > MAX_ARRANGED_BYTES:
                return rows
            assert train is not None
            partition = first.inputs.cpu().numpy().tobytes()
            rows = self._rows(train, partition)
            if held is not None:
                self._held = self._rows(held, partition)
        if self._held is not None:
            self._held.arrange(self.network)
        self._attach(rows.arrange(self.network))
        return rows

    def _attach(self, arranged: bool) -> None:
        """Let the net compute with the network as it is now."""
        self.net.module_ = self.network.arranged() if arranged else self.network
        if self.net.flat_ is not None:
            self.net.flat_.network = self.net.module_
            self.net.flat_.follow_masks()

    def _warm_up(
        self,
        rows: Rows,
        epochs: range,
        hooks: Sequence[Hook],
        cache: Callable[[dict], WarmUpCache] | None,
        train: Sample,
    ) -> Training:
        """Train the dense parent, or take it from the cache."""
        if cache is None or not epochs or self.history.losses:
            yield from self._run(rows, epochs, hooks)
            return

        def compute() -> Warm:
            if run_alone(self._run(rows, epochs, hooks)):
                raise StoppedError
            return self._warm()

        find = cache(
            {
                "sample": train,
                "n_epochs": len(epochs),
                "batch_size": self.settings.rows_per_step(len(rows)),
            }
        )
        try:
            state, losses = find(compute)
        except StoppedError:
            return
        if self.history.losses:
            return  # computed just now
        self.epochs, self.from_cache = epochs, True
        for hook in hooks:
            hook.on_phase_begin(self)
        self.history = replace(self.history, losses=tuple(losses), n_iter=len(epochs))
        tensors = {name: torch.from_numpy(value) for name, value in state.items()}
        self.network.load_state_dict(tensors)
        for hook in hooks:
            hook.on_phase_end(self)
        self.from_cache = False

    def _run(self, rows: Rows, epochs: range, hooks: Sequence[Hook]) -> Training:
        """Yield the epochs of a phase; return whether they were stopped early."""
        self.epochs = epochs
        self.validation_score = None
        self._dealt = self._deal(rows)
        self.step, self.n_steps = 0, len(epochs) * self._dealt.n_steps
        self.net.before_step = self._before_step(hooks)
        self.net.records_ = (
            not self.settings.callbacks
            and self.world.size == 1
            and may_record(self.settings.device, self.n_steps, rows.resident)
        )
        self.net.begin_phase()
        stopped = False
        for hook in hooks:
            hook.on_phase_begin(self)
        for self.epoch in epochs:
            for hook in hooks:
                hook.on_epoch_begin(self)
            yield Epoch(self, rows, self.settings.rate_at(self.epoch))
            self._check_loss()
            self.settled = all(hook.settled for hook in hooks)
            # Every hook is called, whichever asks to stop.
            asked = [hook.on_epoch_end(self) for hook in hooks]
            stopped = self.world.total(self.net.stop_ or any(asked), "decisions") > 0
            if stopped:
                break
        self._end_training()
        for hook in hooks:
            hook.on_phase_end(self)
        self.net.before_step, self.net.records_ = None, False
        self._check_equal_networks()
        return stopped

    def _end_training(self) -> None:
        """Let skorch's callbacks end the phase; note whether one loaded weights."""
        self.loaded = False
        state = {}
        if self.settings.callbacks:
            state = copy.deepcopy(self.network.state_dict())
        self.net.notify("on_train_end", X=None, y=None)
        for name, value in self.network.state_dict().items():
            self.loaded |= name in state and not torch.equal(value, state[name])

    def _before_step(self, hooks: Iterable[Hook]) -> StepHooks | None:
        """Return what the net calls before a step; None if no hook wants it."""
        wanted = [h for h in hooks if type(h).before_step is not Hook.before_step]
        return StepHooks(self, wanted) if wanted else None

    def _deal(self, rows: Rows) -> Deal:
        """Deal the rows of all processes to the steps of an epoch."""
        counts = self.world.gather(len(rows), "numbers of rows")
        n_together = self.settings.rows_per_step(sum(counts))
        return deal(counts, self.world.rank, n_together)

    def _check_equal_networks(self) -> None:
        """Check that all processes hold the same network, to the bit."""
        if self.world.size > 1:
            self.world.check_equal(
                digest(self.network.state_dict().values()),
                f"networks in the {self.phase}",
                " Use the same versions of torch and NumPy everywhere; on processors "
                "of several kinds, set ATEN_CPU_CAPABILITY=default.",
            )

    def run_epoch(self, epoch: Epoch) -> None:
        """Run an epoch of this network alone."""
        net, rows = self.net, epoch.rows
        net.world = self.world
        self.begin_epoch(epoch)
        self.world.begin(f"{self.phase}, epoch {len(self.history.losses) + 1}")
        held = None
        if self.settings.callbacks and self._held is not None:
            held = self._held.batches(PREDICTION_ROWS)
        shares = None if net.flat_ is None else self.settings.loss.shares
        batches = self._dealt.batches(rows, self.order_seed, shares)
        net.fit_loop(batches, held, epochs=1)
        net.world = SINGLE  # because connections do not outlive a call
        self.end_epoch(net.history[-1, "train_loss"])

    def begin_epoch(self, epoch: Epoch) -> None:
        """Set the learning rate and the weight decay of an epoch."""
        self.net.stop_, self.validation_score = False, None
        self.net.set_rate(epoch.rate)
        for group in self.net.optimizer_.param_groups:
            group["weight_decay"] = self.settings.decay_in(self.phase)

    def end_epoch(self, loss: float) -> None:
        """Record the mean training loss of an epoch."""
        self.loss = loss
        self.history = replace(
            self.history,
            losses=(*self.history.losses, loss),
            n_iter=self.history.n_iter + 1,
        )

    @property
    def order_seed(self) -> tuple[int, ...]:
        """The seed of the order of the rows in the next epoch."""
        # Processes shuffle their rows differently.
        of_process = (self.world.rank,) if self.world.size > 1 else ()
        return (self.recipe.seeds.shuffle, *of_process, len(self.history.losses))

    def _check_loss(self) -> None:
        if not math.isfinite(self.loss):
            raise self._diverged(f"The training loss became {self.loss}.")

    def _diverged(self, symptom: str) -> FloatingPointError:
        return FloatingPointError(
            f"{symptom} Lower learning_rate_init (it is "
            f"{self.settings.learning_rate_init:g}), keep standardize=True, and look "
            f"for extreme values in X or y."
        )
