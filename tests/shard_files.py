"""Folders of shards for tests."""

from pathlib import Path

import numpy as np


def write_npy(folder, parts, stem="img_emb"):
    """Write arrays as numbered .npy files; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}_{i}.npy" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        np.save(path, part)
    return paths


def write_parquet(folder, parts, stem="img_emb", fixed=False, group=7, columns=None):
    """Write arrays as the column "embedding" of numbered Parquet files."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}_{i}.parquet" for i in range(len(parts))]
    for i, (path, part) in enumerate(zip(paths, parts, strict=True)):
        values = pa.array(part.ravel())
        if fixed:
            embeddings = pa.FixedSizeListArray.from_arrays(values, part.shape[1])
        else:
            ends = np.arange(len(part) + 1, dtype=np.int32) * part.shape[1]
            embeddings = pa.ListArray.from_arrays(ends, values)
        more = {name: parts[i] for name, parts in (columns or {}).items()}
        table = pa.table({"embedding": embeddings, **more})
        parquet.write_table(table, path, row_group_size=group)
    return paths


def write_metadata(folder, **columns):
    """Write columns, given as lists of parts, as numbered Parquet files."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        folder / f"metadata_{i}.parquet" for i in range(len(*[*columns.values()][:1]))
    ]
    for i, path in enumerate(paths):
        table = pa.table({name: parts[i] for name, parts in columns.items()})
        parquet.write_table(table, Path(path))
    return paths


def cut(X, bounds):
    """Cut an array into parts."""
    return np.split(X, sorted(bounds))
