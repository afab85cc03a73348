"""A pretend accelerator, "pretend:0" and "pretend:1", for machines without a GPU.

Its tensors compute on the CPU, so values are real, but they obey CUDA's rules: operands
on two devices are an error, and so is a NumPy array of a tensor. What costs time on a
GPU is counted: launches of operations, copies from and to the host, and every time that
the host has to wait, each with the line of the package that caused it.

It stands on torch's interface for back ends in Python, which old versions lack; see
:func:`is_possible`.
"""

import contextlib
import functools
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "pretend"
PACKAGE = str(Path(__file__).parents[1] / "sklearn_fpe")
aten = torch.ops.aten

COPIES = {"copy_", "_to_copy", "_copy_from"}

VIEWS = {
    *("view", "_unsafe_view", "_reshape_alias", "as_strided", "alias", "detach"),
    *("t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "diagonal"),
    *("slice", "select", "split", "split_with_sizes", "unbind", "unfold"),
    *("empty_like", "new_empty", "new_empty_strided"),  # these only allocate
}
"""Operations that launch nothing."""

WAITS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}
"""Operations whose result the host must know before it goes on."""

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take indices of the CPU, and copy them, which the host waits for."""


class MixedDevicesError(RuntimeError):
    """Operands are on two devices, which CUDA refuses."""


@dataclass
class Counts:
    """What the device did.

    Attributes
    ----------
    launches : Counter
        Operations by name.
    waits : Counter
        How often the host waited, by reason and line.
    uploads, downloads : Counter
        Bytes copied from and to the host, by line.
    """

    launches: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    uploads: Counter = field(default_factory=Counter)
    downloads: Counter = field(default_factory=Counter)

    @property
    def n_launches(self):
        return sum(self.launches.values())

    @property
    def n_waits(self):
        return sum(self.waits.values())


_counts = Counts()
_pinned = {}
_is_there = 0


def is_possible():
    """Tell whether this version of torch takes a back end in Python."""
    name = "_setup_privateuseone_for_python_backend"
    return hasattr(backend_registration, name)


@contextlib.contextmanager
def in_use():
    """Make the device usable, and pinned memory with it.

    Inference mode is replaced by ``torch.no_grad``, because tensors like these cannot
    be made in it; the arithmetic is the same.
    """
    from sklearn_fpe._engine import _device

    _register()
    global _is_there
    _is_there += 1
    before = torch.inference_mode, _device.empty_pinned, _device.PINNING
    torch.inference_mode = _without_gradients
    _device.empty_pinned = _empty_pinned
    _device.PINNING = _device.PINNING | {NAME}
    try:
        yield torch.device(NAME, 0)
    finally:
        torch.inference_mode, _device.empty_pinned, _device.PINNING = before
        _is_there -= 1
        _pinned.clear()


@contextlib.contextmanager
def counting():
    """Count anew; yields :class:`Counts`."""
    global _counts
    before, _counts = _counts, Counts()
    try:
        yield _counts
    finally:
        _counts = before


def _without_gradients(mode=True):
    if callable(mode):  # as a decorator
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else contextlib.nullcontext()


def _empty_pinned(shape, dtype):
    buffer = torch.empty(shape, dtype=dtype, device="cpu")
    # Kept, so that its address belongs to nothing else.
    _pinned[buffer.untyped_storage().data_ptr()] = buffer
    return buffer


def _is_pinned(tensor):
    return tensor.untyped_storage().data_ptr() in _pinned


# --------------------------------------------------------------------------------------
# Tensors
# --------------------------------------------------------------------------------------


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device, around a tensor of the CPU."""

    @staticmethod
    def __new__(cls, inner, index):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, index),
        )
        made.values_here, made.number = inner, index
        return made

    def __repr__(self, *, tensor_contents=None):
        return f"PretendTensor({self.values_here}, index={self.number})"

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value):
        self.values_here, self.number = value.values_here, value.number
        torch.Tensor.data.__set__(self, value)

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        _launch("clone")
        twin = PretendTensor(self.values_here.detach().clone(), self.number)
        if isinstance(self, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin, requires_grad=self.requires_grad)
        memo[id(self)] = twin
        return twin

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert a tensor on {self.device} to numpy")

    def __array__(self, *args, **kwargs):
        raise TypeError(f"can't convert a tensor on {self.device} to numpy")

    def tolist(self):
        _wait("tolist")
        return self.values_here.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    """Do an operation on the tensors inside, and count it."""
    name = function._schema.name.split("::")[1]
    if name in COPIES:
        return _copy(name, args, kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    there = [leaf for leaf in leaves if isinstance(leaf, PretendTensor)]
    index = _common_device(name, leaves, there, kwargs.get("device"))
    if name in WAITS:
        _wait(name)
    if name in INDEXING and any(
        leaf.dtype in (torch.bool, torch.uint8)
        for leaf in pytree.tree_leaves(args[1])
        if isinstance(leaf, PretendTensor)
    ):
        _wait("boolean index")
    inner = [x.values_here if isinstance(x, PretendTensor) else x for x in leaves]
    args, kwargs = pytree.tree_unflatten(inner, spec)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*args, **kwargs)
    if name not in VIEWS:
        _launch(name)
    # An operation in place returns the tensor that was passed.
    passed = {id(tensor.values_here): tensor for tensor in there}

    def outside(value):
        if not isinstance(value, torch.Tensor):
            return value
        return passed.get(id(value)) if id(value) in passed else _make(value, index)

    return pytree.tree_map(outside, result)


def _make(inner, index):
    return PretendTensor(inner, index)


def _common_device(name, leaves, there, wanted):
    """Return the device's number; raise where CUDA would."""
    numbers = {tensor.number for tensor in there}
    if len(numbers) > 1:
        raise MixedDevicesError(f"{name} got tensors of the devices {numbers}")
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, PretendTensor):
            continue
        is_index = leaf.dtype in (torch.int64, torch.int32, torch.bool, torch.uint8)
        if name in INDEXING and is_index:
            _counts.uploads[_place()] += leaf.nbytes
            _wait("copy of an index")
        elif leaf.ndim:  # a tensor of no dimension counts as a number
            raise MixedDevicesError(
                f"{name} got a CPU tensor of shape {tuple(leaf.shape)}, {leaf.dtype}"
            )
    if wanted is not None and torch.device(wanted).type == NAME:
        return torch.device(wanted).index or 0
    return numbers.pop() if numbers else 0


def _copy(name, args, kwargs):
    """Copy between devices, or convert on one."""
    if name == "_to_copy":
        source, wanted = args[0], kwargs.get("device")
        target = source.device if wanted is None else torch.device(wanted)
        left_out = ("device", "pin_memory", "non_blocking")
        plain = {k: v for k, v in kwargs.items() if k not in left_out}
        inner = getattr(source, "values_here", source)
        result = aten._to_copy.default(inner, **plain)
        to_host = target.type != NAME
        _count_copy(source, to_host, result, kwargs.get("non_blocking", False))
        return result if to_host else PretendTensor(result, target.index or 0)
    target, source = args[:2] if name == "copy_" else (args[1], args[0])
    non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    inner = getattr(target, "values_here", target)
    to_host = inner is target
    inner.copy_(getattr(source, "values_here", source))
    _count_copy(source, to_host, inner, non_blocking)
    return target


def _count_copy(source, to_host, result, non_blocking):
    from_host = not isinstance(source, PretendTensor)
    if from_host == to_host:
        _launch("copy")
        return
    host = source if from_host else result
    (_counts.uploads if from_host else _counts.downloads)[_place()] += result.nbytes
    if not (non_blocking and _is_pinned(host)):
        _wait("upload" if from_host else "download")


def _launch(name):
    _counts.launches[name] += 1


def _wait(reason):
    _counts.waits[f"{reason} at {_place()}"] += 1


def _place():
    """Return file, line and function of the innermost frame of the package."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            path = Path(code.co_filename).relative_to(PACKAGE)
            return f"{path}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return "outside of the package"


# --------------------------------------------------------------------------------------
# Registration
# --------------------------------------------------------------------------------------


class _Module:
    """What torch looks for as ``torch.pretend``."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def is_autocast_enabled(self):
        return torch.is_autocast_enabled(NAME)

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def device_count(self):
        return 2

    def current_device(self):
        return 0

    def synchronize(self, device=None):
        _wait("synchronize")

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass


@functools.cache
def _register():
    """Register the device with torch, once in a process."""
    backend_registration._setup_privateuseone_for_python_backend(
        NAME, backend_module=_Module()
    )
    operators = torch.library.Library("aten", "IMPL")
    operators.impl("empty.memory_format", _empty, "PrivateUse1")
    operators.impl("empty_strided", _empty_strided, "PrivateUse1")
    operators.impl("_copy_from", _copy_from, "PrivateUse1")
    # Otherwise torch splits it into several operations, as it does on no GPU.
    silu = functools.partial(_run_flat, aten.silu_backward.default)
    operators.impl("silu_backward", silu, "PrivateUse1")
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in ("mm", "bmm", "addmm", "baddbmm", "linear", "matmul"):
        packet = getattr(aten, name)
        operators.impl(name, _in_low_precision(packet.default), "AutocastPrivateUse1")
    return operators, others  # they are undone when they are collected


def _run_flat(function, *args):
    return _run(function, args, {})


def _empty(size, *, dtype=None, device=None, **others):
    _check_is_there()
    inner = torch.empty(size, dtype=dtype, device="cpu")
    return PretendTensor(inner, torch.device(device).index or 0)


def _empty_strided(size, stride, *, dtype=None, device=None, **others):
    _check_is_there()
    inner = torch.empty_strided(size, stride, dtype=dtype, device="cpu")
    return PretendTensor(inner, torch.device(device).index or 0)


def _check_is_there():
    """Let the device be missing for tests that do not use it."""
    if not _is_there:
        raise RuntimeError("the pretend device is not in use")


def _copy_from(source, target, non_blocking=False):
    return _copy("_copy_from", (source, target, non_blocking), {})


def _in_low_precision(operator):
    """Return an operator as autocast runs it: on operands in the lower precision."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def lower(value):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if value.dtype == torch.float64:
            return value
        return value.to(torch.get_autocast_dtype(NAME))

    def run(*args):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*map(lower, args))

    return run
