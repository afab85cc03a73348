"""Which files are shards, in which order, and which metadata belong to each."""

import os
import re
from pathlib import Path

from sklearn_fpe.datasets._files import ShardError
from sklearn_fpe.datasets._npy import inspect_npy
from sklearn_fpe.datasets._parquet import inspect_parquet

ENDINGS = (".npy", ".parquet")


def find_shards(path):
    """List the files of a folder, of a file, or of a list of both, in their order."""
    files = []
    for one in _absolute(path):
        if one.is_dir():
            files += _of_folder(one)
        elif not one.exists():
            raise FileNotFoundError(f"path must exist, got {str(one)!r}.")
        elif one.suffix.lower() not in ENDINGS:
            raise ValueError(
                f"path must be a folder, .npy or .parquet, got {str(one)!r}."
            )
        else:
            files.append(one)
    if not files:
        raise ValueError("path must name at least one folder or file, got none.")
    endings = {file.suffix.lower() for file in files}
    if len(endings) > 1:
        raise ShardError(
            f"Shards must be all .npy or all .parquet, got both: "
            f"{str(files[0])!r} and others. Pass a list of the files that are meant."
        )
    return [str(file) for file in files]


def _absolute(paths):
    """Return absolute paths for one path or several."""
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    return [Path(os.path.abspath(os.path.expanduser(path))) for path in paths]


def _of_folder(folder):
    files = list_files(folder, ENDINGS)
    if files:
        return files
    inner = [d.name for d in folder.iterdir() if d.is_dir() and list_files(d, ENDINGS)]
    hint = f" Pass one of its folders: {sorted(inner)}." if inner else ""
    raise ShardError(f"{str(folder)!r} must hold .npy or .parquet files.{hint}")


def list_files(folder, endings):
    """List files with certain endings, hidden ones left out, in numeric order."""
    found = [
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in endings
        and entry.name[0] not in "._"
        and entry.is_file()
    ]
    return sorted(found, key=_numeric_key)


def _numeric_key(file):
    parts = re.split(r"(\d+)", file.name)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], file.name


def number_of(path):
    """Return the last number in the name of a file, None if it has none."""
    numbers = re.findall(r"\d+", Path(path).stem)
    return int(numbers[-1]) if numbers else None


def inspect_shards(paths, column):
    """Read what all files say of themselves, and check that they belong together."""
    shards = []
    for path in paths:
        is_npy = path.lower().endswith(".npy")
        shards.append(inspect_npy(path) if is_npy else inspect_parquet(path, column))
    known = [shard for shard in shards if shard.n_columns is not None]
    for shard in known[1:]:
        for what in ("n_columns", "dtype"):
            has, wanted = getattr(shard, what), getattr(known[0], what)
            if has != wanted:
                raise ShardError(
                    f"All shards must have the same {what}: {shard.path!r} has {has}, "
                    f"{known[0].path!r} has {wanted}."
                )
    return shards


def pair_metadata(shards, metadata):
    """Return the Parquet file with the metadata of each shard, None where it has none.

    Without `metadata`, the metadata of Parquet files are in the files themselves, and
    those of ``.npy`` files in the folder ``metadata`` beside theirs.
    """
    paths = [shard.path for shard in shards]
    if metadata is not None:
        files = []
        for one in _absolute(metadata):
            if not one.exists():
                raise FileNotFoundError(f"metadata must exist, got {str(one)!r}.")
            files += list_files(one, (".parquet",)) if one.is_dir() else [one]
        pairs = _pair(paths, files)
        if None in pairs:
            raise ShardError(
                f"metadata must have a Parquet file for every shard, "
                f"{paths[pairs.index(None)]!r} has none among {len(files)} files."
            )
        return pairs
    if paths[0].lower().endswith(".parquet"):
        return paths
    pairs = dict.fromkeys(paths)
    for folder in dict.fromkeys(Path(path).parent for path in paths):
        inside = [path for path in paths if Path(path).parent == folder]
        beside = folder.parent / "metadata"
        if beside.is_dir():
            files = list_files(beside, (".parquet",))
            pairs.update(zip(inside, _pair(inside, files), strict=True))
    return [pairs[path] for path in paths]


def _pair(paths, files):
    """Pair by the last number in the name; by position where there are no numbers."""
    files = [str(file) for file in files]
    numbers = [number_of(path) for path in paths]
    by_number = {number_of(file): file for file in files}
    if None in numbers or len({*numbers}) < len(paths) or len(by_number) < len(files):
        return files if len(files) == len(paths) else [None] * len(paths)
    return [by_number.get(number) for number in numbers]
