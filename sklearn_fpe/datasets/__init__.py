"""Boolean tasks with interference that is set by hand, and rows in many files.

Parquet files, and the metadata of shards, need the extra ``parquet``
(``pip install "sklearn-fpe[parquet]"``); importing this module does not import it.
"""

from sklearn_fpe.datasets._dnf import DNF, make_dnf
from sklearn_fpe.datasets._files import ShardError
from sklearn_fpe.datasets._shards import Shards, open_shards

__all__ = ["DNF", "ShardError", "Shards", "make_dnf", "open_shards"]
