"""Records the operations of a step on the CPU and replays them, as a CUDA graph does.

What is recorded is not done; what is replayed reads and writes the same memory, and
repeats the numbers that Python passed. What would make the host wait is an error.
"""

import contextlib

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

FORBIDDEN = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}


class Tape(TorchDispatchMode):
    """Notes every operation, and what it overwrites."""

    def __init__(self):
        super().__init__()
        self.operations, self.overwritten, self.views = [], [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.split("::")[1]
        if name in FORBIDDEN:
            raise RuntimeError(f"{name} makes the host wait while a step is recorded")
        passed = [
            leaf
            for leaf in pytree.tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        ]
        for tensor in self._written(function, args, kwargs):
            self.overwritten.append((tensor, tensor.clone()))
        result = function(*args, **kwargs)
        made = [
            leaf
            for leaf in pytree.tree_leaves(result)
            if isinstance(leaf, torch.Tensor)
        ]
        if any(
            r.alias_info and not r.alias_info.is_write for r in self._returns(function)
        ):
            self.views.append(result)  # shares memory with what is kept
            return result
        fresh = [tensor for tensor in made if not any(tensor is p for p in passed)]
        self.operations.append((function, args, kwargs, fresh))
        return result

    @staticmethod
    def _returns(function):
        return function._schema.returns

    @staticmethod
    def _written(function, args, kwargs):
        """Return the tensors that an operation overwrites."""
        found = []
        for number, argument in enumerate(function._schema.arguments):
            if argument.alias_info and argument.alias_info.is_write:
                value = kwargs.get(argument.name)
                value = args[number] if number < len(args) else value
                found += pytree.tree_leaves(value)
        return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]

    @torch.no_grad()
    def undo(self):
        """Put back what was overwritten."""
        for tensor, values in reversed(self.overwritten):
            tensor.copy_(values)
        self.overwritten.clear()

    @torch.no_grad()
    def replay(self):
        """Do the operations again, on the same memory."""
        for function, args, kwargs, fresh in self.operations:
            result = pytree.tree_leaves(function(*args, **kwargs))
            for tensor, values in zip(fresh, result, strict=False):
                tensor.copy_(values)


class TapeCapture:
    """The methods of :class:`sklearn_fpe._engine._graph.CudaCapture`, on the CPU."""

    made = []  # noqa: RUF012

    def __init__(self, device):
        self.tape, self.n_replays, self.n_warm, self.recorded = Tape(), 0, 0, False
        TapeCapture.made.append(self)

    @contextlib.contextmanager
    def warm_up(self):
        self.n_warm += 1
        yield

    def record(self, function):
        assert not self.recorded
        with torch.no_grad(), self.tape:
            function()
        self.tape.undo()
        self.recorded = True

    def replay(self):
        assert self.recorded
        self.n_replays += 1
        self.tape.replay()
