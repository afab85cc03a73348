"""Rows on their way to the network: statistics, standardisation, batches.

Arrays in memory are standardised once, into a float32 tensor on the device, from which
whole batches are sliced. Memory maps above :data:`STREAM_ABOVE` and sparse matrices are
never copied whole: their batches are made as they are asked for.
"""

import math

import numpy as np
import torch
from scipy import sparse

STREAM_ABOVE = 2**29
"""Bytes, as float32, above which a memory map is streamed instead of loaded."""

NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}

CHUNK_BYTES = 2**20
"""Bytes, as float64, of the pieces in which arrays are converted."""

SMALLEST_SCALE = 1e-30
"""Columns of a smaller standard deviation are constant: float32 has no room for it."""

ROUNDING = CHUNK_BYTES / 8 * np.finfo(np.float64).eps
"""Bound on the relative error of the mean of a chunk's column."""

SHUFFLE_BLOCK = 1024
"""Neighbouring rows of a streamed map that are read together."""

SHUFFLE_BYTES = 2**26
"""Bytes, as float32, of the blocks whose rows are shuffled among one another."""


def chunks(n_rows, n_columns, n_bytes=CHUNK_BYTES, itemsize=8):
    """Yield slices that cut `n_rows` into pieces of at most `n_bytes`."""
    step = max(1, n_bytes // (itemsize * max(1, n_columns)))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def as_tensor(part, dtype):
    """Return dense rows as a tensor, where they are; a copy only if it must be."""
    if isinstance(part, torch.Tensor):
        return part.to(dtype)
    part = np.asarray(part, dtype=NUMPY_DTYPES[dtype], order="C")
    # torch takes neither read-only arrays nor negative strides, even of length 1.
    if not part.flags.writeable or min(part.strides) < 0:
        part = part.copy()
    return torch.from_numpy(part)


def _as_double(part):
    """Return a copy of dense rows as a double tensor, where they are."""
    if isinstance(part, torch.Tensor):
        return part.to(torch.float64, copy=True)
    return torch.from_numpy(np.array(part, dtype=np.float64, order="C"))


def _is_memmap(X):
    while isinstance(X, np.ndarray):
        if isinstance(X, np.memmap):
            return True
        X = X.base
    return False


class View:
    """Some rows of an array-like, read in pieces.

    Parameters
    ----------
    X : ndarray, memory map, CSR matrix or tensor of shape (n, n_features)
        The array; it is never copied whole.
    index : int ndarray of shape (n_rows,), default=None
        The rows, in increasing order; None: all of them.
    """

    def __init__(self, X, index=None):
        self.X = X
        self.index = index
        self.shape = (X.shape[0] if index is None else len(index), X.shape[1])

    def __len__(self):
        return self.shape[0]

    @property
    def streamed(self):
        """Whether the rows are read in pieces at every use, not loaded once."""
        if sparse.issparse(self.X):
            return True
        return _is_memmap(self.X) and self.X.size * 4 > STREAM_ABOVE

    def read(self, rows):
        """Return the rows of a slice or an int array, dense; a tensor of a tensor."""
        if self.index is not None:
            rows = self.index[rows]
        part = self.X[rows]
        return part.toarray() if sparse.issparse(part) else part

    def select(self, array):
        """Return the rows of an array that go with those of the view."""
        return array if self.index is None else array[self.index]


class Scaler:
    """Location and scale of columns, in double precision.

    Parameters
    ----------
    mean, scale : ndarray of float64 of shape (n_features,)
        Weighted mean, and standard deviation or 1 for a constant column.
    """

    def __init__(self, mean, scale):
        self.mean = mean
        self.scale = scale

    @classmethod
    def identity(cls, n_features):
        """Make a scaler that leaves its input as it is."""
        return cls(np.zeros(n_features), np.ones(n_features))

    def rows(self, view, rows):
        """Standardise some rows of a view into a new float32 tensor."""
        part = _as_double(view.read(rows))
        mean, scale = self.tensors(part.device)
        part -= mean
        part /= scale
        return part.float()

    def tensors(self, device):
        """Return mean and scale as tensors on `device`."""
        return (
            torch.tensor(self.mean, device=device),
            torch.tensor(self.scale, device=device),
        )


class Moments:
    """Running weighted mean and variance of columns (Chan, Golub and LeVeque, 1983).

    Attributes
    ----------
    weight : float
        Sum of the weights seen.
    mean, m2 : ndarray of float64 of shape (n_features,)
        Mean, and sum of weighted squared deviations.
    """

    def __init__(self, n_features):
        self.weight = 0.0
        self.mean = np.zeros(n_features)
        self.m2 = np.zeros(n_features)

    def update(self, view, weights):
        """Add the rows of a view, with weights of shape (n_rows,)."""
        for rows in chunks(*view.shape):
            part = _as_double(view.read(rows))
            w = torch.from_numpy(weights[rows].astype(np.float64)).to(part.device)
            total = float(w.sum())
            mean = w @ part / total
            part -= mean
            part.square_()
            mean, m2 = mean.cpu().numpy(), (w @ part).cpu().numpy()
            delta = mean - self.mean
            share = total / (self.weight + total)
            self.mean = self.mean + delta * share
            self.m2 = self.m2 + m2 + delta**2 * (self.weight * share)
            self.weight += total
        return self

    def constant(self):
        """Tell which columns are constant up to rounding, bool (n_features,)."""
        scale = np.sqrt(self.m2 / self.weight)
        return scale <= np.maximum(SMALLEST_SCALE, ROUNDING * np.abs(self.mean))

    def scaler(self):
        """Return the scaler of the rows seen."""
        scale = np.where(self.constant(), 1.0, np.sqrt(self.m2 / self.weight))
        return Scaler(self.mean.copy(), scale)


class Rows:
    """Training rows, standardised, in the device's memory from their first use on.

    Parameters
    ----------
    view : View of shape (n_rows, n_features)
        Input rows.
    targets : tensor of shape (n_rows, ...)
        Encoded targets.
    weights : ndarray of shape (n_rows,)
        Sample weights, of mean 1.
    scaler : Scaler
        What standardises X.
    device : torch.device
        Where the rows are kept.
    """

    def __init__(self, view, targets, weights, scaler, device):
        self.view, self.scaler = view, scaler
        self.targets = targets.to(device)
        self.weights = torch.from_numpy(weights.astype(np.float32)).to(device)
        self.device = device
        self.gathered = False
        self.x = None

    def __len__(self):
        return len(self.targets)

    def _load(self, lay_out=lambda x: x):
        x = None
        for rows in chunks(*self.view.shape):
            part = lay_out(self.scaler.rows(self.view, rows).to(self.device))
            if x is None:
                x = part.new_empty(len(self), part.shape[1])
            x[rows] = part
        return x

    def gather(self, network):
        """Lay the columns out as the network's first layer reads them, once."""
        if not network.gathers:
            return

        def lay_out(part):
            return network.gather(part, in_place=True)

        self.x = self._load(lay_out) if self.x is None else _replace(self.x, lay_out)
        self.gathered = True

    def batches(self, batch_size, seed=None):
        """Return an iterable of (x, (targets, weights)), shuffled if seeded."""
        return _Batches(self, batch_size, seed)

    def _iterate(self, batch_size, seed):
        if self.x is None:
            self.x = self._load()
        n = len(self)
        if seed is None:
            for start in range(0, n, batch_size):
                rows = slice(start, start + batch_size)
                yield self.x[rows], (self.targets[rows], self.weights[rows])
            return
        order = _permutation(n, seed).to(self.device)
        # The small columns are shuffled whole, which saves two gathers a batch.
        targets, weights = self.targets[order], self.weights[order]
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            x = self.x.index_select(0, order[rows])
            yield x, (targets[rows], weights[rows])


class StreamedRows(Rows):
    """Training rows that stay where they are; batches are made on demand.

    Rows of a sparse matrix are shuffled like rows in memory. Rows of a memory map are
    shuffled by blocks: blocks of :data:`SHUFFLE_BLOCK` neighbouring rows are read in
    random order, and some :data:`SHUFFLE_BYTES` worth of them are shuffled among one
    another at a time, so that the map is read in runs and not row by row.
    """

    def gather(self, network):
        """Do nothing: the network gathers its columns from every batch."""

    def _iterate(self, batch_size, seed):
        for order, x in self._pieces(batch_size, seed):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                yield (
                    x(slice(start, start + batch_size), rows).to(self.device),
                    (self.targets[rows], self.weights[rows]),
                )

    def _pieces(self, batch_size, seed):
        """Yield row numbers and a function that reads a part of them."""
        n = len(self)
        if seed is None:
            yield torch.arange(n), lambda part, rows: self.scaler.rows(self.view, part)
        elif sparse.issparse(self.view.X):
            yield (
                _permutation(n, seed),
                lambda part, rows: self.scaler.rows(self.view, rows.numpy()),
            )
        else:
            starts = torch.arange(0, n, SHUFFLE_BLOCK)
            starts = starts[_permutation(len(starts), seed)]
            together = SHUFFLE_BYTES // (4 * SHUFFLE_BLOCK * self.view.shape[1])
            together = max(1, together, -(-batch_size // SHUFFLE_BLOCK))
            for g, group in enumerate(starts.split(together)):
                blocks = [slice(int(s), min(int(s) + SHUFFLE_BLOCK, n)) for s in group]
                x = torch.cat([self.scaler.rows(self.view, block) for block in blocks])
                order = torch.cat([torch.arange(b.start, b.stop) for b in blocks])
                shuffle = _permutation(len(order), (*seed, g))
                yield (
                    order[shuffle],
                    lambda part, rows, x=x, s=shuffle: x.index_select(0, s[part]),
                )


def _replace(x, lay_out):
    """Replace rows by what they are laid out to, in their memory if it has room."""
    n_rows, width = x.shape
    out = None
    for rows in chunks(n_rows, width):
        part = lay_out(x[rows])
        if out is None:
            shape = (n_rows, part.shape[1])
            # Narrower rows end before the first of those that are yet to be read.
            is_room = shape[1] <= width
            out = x.view(-1)[: math.prod(shape)] if is_room else x.new_empty(shape)
            out = out.view(shape)
        out[rows] = part
    return out


def make_rows(view, targets, weights, scaler, device):
    """Make :class:`Rows`, or :class:`StreamedRows` of what is not to be copied."""
    kind = StreamedRows if view.streamed else Rows
    return kind(view, targets, weights, scaler, device)


class _Batches:
    def __init__(self, rows, batch_size, seed):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed

    def __len__(self):
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self):
        return self.rows._iterate(self.batch_size, self.seed)


def _permutation(n, seed):
    """Shuffle 0 ... n - 1, by a seed that is a tuple of ints."""
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
    return torch.randperm(n, generator=torch.Generator().manual_seed(state))
