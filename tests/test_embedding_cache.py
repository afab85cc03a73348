"""The cache of embeddings: one SQLite file that threads and processes share."""

import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed

from sklearn_fpe.embeddings import CLIPEmbedder

pytest.importorskip(
    "transformers", reason="the extra 'clip' is not installed: transformers is missing"
)


def change(folder, statement, *values):
    """Change the table, as a fault or another program would."""
    with closing(sqlite3.connect(folder / "embeddings.sqlite")) as database, database:
        return database.execute(statement, values).fetchall()


@pytest.mark.parametrize("make", [str, Path, joblib.Memory])
def test_one_file_whatever_names_the_folder(make, model, pictures, encoded, tmp_path):
    folder = tmp_path / "deep" / "memory"
    kept = CLIPEmbedder(model, memory=make(folder)).transform(pictures)
    again = CLIPEmbedder(model, memory=str(folder), batch_size=2).transform(pictures)
    np.testing.assert_array_equal(again, kept)
    assert encoded == [7]
    names = {file.name for file in folder.rglob("*") if file.is_file()}
    assert names - {".gitignore"} == {"embeddings.sqlite"}  # joblib's own


def test_memory_without_a_folder_keeps_nothing(model, pictures, encoded):
    embedder = CLIPEmbedder(model, memory=joblib.Memory(None))
    embedder.transform(pictures)
    embedder.transform(pictures)
    assert encoded == [7, 7]


def test_nothing_in_the_cache_is_a_pickle(model, pictures, tmp_path, monkeypatch):
    for name in ["load", "loads", "Unpickler"]:
        monkeypatch.setattr(pickle, name, pytest.fail)
    for _ in range(2):
        CLIPEmbedder(model, memory=tmp_path).transform(pictures)
    values = change(tmp_path, "SELECT value FROM entries")
    assert {len(value) for (value,) in values} == {6 * 4, 32}  # vectors, digests


@pytest.mark.parametrize(
    "value",
    [
        np.full(6, np.nan, np.float32).tobytes(),
        np.full(6, np.inf, np.float32).tobytes(),
        np.zeros(5, np.float32).tobytes(),
        np.zeros(7, np.float32).tobytes(),
        np.zeros(6, np.float32).tobytes(),
        b"",
        b"abc",
        "text",
        1.5,
    ],
)
def test_wrong_entries_are_replaced(value, model, pictures, encoded, tmp_path):
    embedder = CLIPEmbedder(model, memory=tmp_path)
    expected = embedder.transform(pictures)
    where = "WHERE length(value) = 24"
    entries = change(tmp_path, f"SELECT key, value FROM entries {where}")
    change(tmp_path, f"UPDATE entries SET value = ? {where}", value)
    np.testing.assert_array_equal(embedder.transform(pictures), expected)
    assert encoded == [7, 7]
    assert change(tmp_path, f"SELECT key, value FROM entries {where}") == entries
    embedder.transform(pictures)
    assert encoded == [7, 7]


def test_entry_of_another_image_is_replaced(model, pictures, encoded, tmp_path):
    embedder = CLIPEmbedder(model, memory=tmp_path)
    expected = embedder.transform(pictures)
    first = "(SELECT value FROM entries WHERE length(value) = 24 LIMIT 1)"
    change(tmp_path, f"UPDATE entries SET value = {first} WHERE length(value) = 24")
    np.testing.assert_allclose(embedder.transform(pictures), expected, atol=1e-6)
    assert encoded == [7, 6]


def test_wrong_digest_of_the_weights_is_replaced(model, pictures, encoded, tmp_path):
    embedder = CLIPEmbedder(model, memory=tmp_path)
    embedder.transform(pictures)
    change(tmp_path, "UPDATE entries SET value = zeroblob(32) WHERE length(value) = 32")
    embedder.transform(pictures)
    assert encoded == [7]


@pytest.mark.parametrize("damage", ["no database", "pages", "short", "other table"])
def test_damaged_file_is_an_error_that_says_what_to_do(
    damage, model, pictures, tmp_path
):
    embedder = CLIPEmbedder(model, memory=tmp_path)
    expected = embedder.transform(pictures)
    file = tmp_path / "embeddings.sqlite"
    whole = file.read_bytes()
    if damage == "other table":
        change(tmp_path, "DROP TABLE entries")
        change(tmp_path, "CREATE TABLE entries (name TEXT)")
    else:
        file.write_bytes(
            {
                "no database": b"no database" * 1000,
                "pages": whole[:100] + b"\xff" * (len(whole) - 100),
                "short": whole[: len(whole) // 2 - 100],
            }[damage]
        )
    hint = "" if damage == "other table" else ".*is damaged: delete it"
    with pytest.raises(OSError, match=rf"memory='.*'embeddings\.sqlite'.*{hint}"):
        embedder.transform(pictures)
    file.unlink()
    np.testing.assert_array_equal(embedder.transform(pictures), expected)


@pytest.mark.parametrize("name", ["file/memory", "file", "folder"])
def test_folder_that_cannot_be_used_is_named(name, model, pictures, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "embeddings.sqlite").mkdir(parents=True)
    with pytest.raises(OSError, match=rf"memory='.*{name}': the cache"):
        CLIPEmbedder(model, memory=tmp_path / name).transform(pictures)


def test_other_programs_lock_is_waited_for(model, pictures, tmp_path, monkeypatch):
    embedder = CLIPEmbedder(model, memory=tmp_path)
    expected = embedder.transform(pictures[:3])
    database = sqlite3.connect(
        tmp_path / "embeddings.sqlite", isolation_level=None, check_same_thread=False
    )
    with closing(database):
        database.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(0.5, database.rollback)
        timer.start()
        np.testing.assert_array_equal(embedder.transform(pictures[:3]), expected)
        timer.join()
        database.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr("sklearn_fpe.embeddings._cache._LOCK_TIMEOUT_S", 0.1)
        with pytest.raises(OSError, match=r"memory=.*database is locked"):
            embedder.transform(pictures)


def embed(model, memory, pictures, order):
    embedder = CLIPEmbedder(model, memory=memory, batch_size=3, device="cpu")
    return embedder.transform(pictures[order])


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_processes_and_threads_write_at_once(backend, model, tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 20, 24, 3), dtype=np.uint8)
    orders = [rng.permutation(40) for _ in range(6)]
    results = Parallel(n_jobs=3, backend=backend)(
        delayed(embed)(model, tmp_path, pictures, order) for order in orders
    )
    expected = CLIPEmbedder(model).transform(pictures)
    for order, result in zip(orders, results, strict=True):
        np.testing.assert_allclose(result, expected[order], atol=1e-5)
    count = "SELECT count(*) FROM entries WHERE length(value) = 24"
    assert change(tmp_path, count) == [(40,)]
    assert change(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    assert [file.name for file in tmp_path.iterdir()] == ["embeddings.sqlite"]


def test_killed_writer_leaves_a_whole_cache(model, pictures, tmp_path):
    code = f"""
import os, sqlite3
database = sqlite3.connect({str(tmp_path / "embeddings.sqlite")!r})
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
for i in range(500):
    row = (str(i), b"x" * 999, 0)
    database.execute("INSERT INTO entries VALUES (?, ?, ?)", row)
os._exit(9)
"""
    embedder = CLIPEmbedder(model, memory=tmp_path)
    expected = embedder.transform(pictures)
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "embeddings.sqlite-journal").exists()
    np.testing.assert_array_equal(embedder.transform(pictures), expected)
    assert os.listdir(tmp_path) == ["embeddings.sqlite"]


def test_equal_images_in_neighbouring_batches_are_embedded_once(
    model, pictures, encoded, tmp_path
):
    embedder = CLIPEmbedder(model, memory=tmp_path, batch_size=2)
    order = [0, 1, 1, 2, 2, 0, 0, 0, 3]
    embeddings = embedder.transform(pictures[order])
    assert encoded == [2, 1, 1]
    np.testing.assert_array_equal(embeddings, embedder.transform(pictures)[order])
