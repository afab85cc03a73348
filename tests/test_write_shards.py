"""Shards of embeddings: written once, whatever stops the writing."""

import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow, of the extra 'parquet', is missing")
pytest.importorskip("fcntl", reason="there are no file locks on this system")

from fake_embedder import N_COLUMNS, FakeEmbedder, embedding
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_fpe.datasets import open_shards
from sklearn_fpe.embeddings import CLIPEmbedder, _partial, write_shards

pytestmark = pytest.mark.filterwarnings(
    # Every writer names the images that it leaves out.
    "ignore:.* could not be read and were left out:UserWarning"
)


def names(n_images, bad=()):
    return [f"{i}.bad" if i in bad else f"{i}.png" for i in range(n_images)]


def check_stored(folder, images, shard_size):
    """Check that every readable image is stored once, in its place."""
    X = open_shards(Path(folder) / "img_emb")
    good = [i for i, name in enumerate(images) if "bad" not in name]
    assert X.column("position").tolist() == good
    assert X.column("image_path").tolist() == [images[i] for i in good]
    np.testing.assert_array_equal(X, [embedding(images[i]) for i in good])
    assert len(X.files) == -(-len(images) // shard_size)
    hidden = [f.name for f in Path(folder).rglob(".*") if f.name != ".lock"]
    assert not hidden
    return X


@settings(deadline=None, max_examples=25)
@given(
    n_images=st.integers(1, 40),
    shard_size=st.integers(1, 50),
    batch_size=st.integers(1, 20),
    data=st.data(),
)
def test_every_readable_image_is_stored_once(
    tmp_path_factory, n_images, shard_size, batch_size, data
):
    bad = data.draw(st.sets(st.integers(0, n_images - 1), max_size=n_images - 1))
    folder = tmp_path_factory.mktemp("shards") / "new" / "folder"
    images = names(n_images, bad)
    embedder, progress = FakeEmbedder(batch_size), []
    written = write_shards(
        embedder,
        images,
        folder,
        shard_size=shard_size,
        metadata={"label": np.arange(n_images) % 3},
        progress=lambda *done: progress.append(done),
    )
    X = check_stored(folder, images, shard_size)
    assert embedder.embedded == images
    assert X.dtype == np.float16
    assert X.column("label").tolist() == [
        i % 3 for i in range(n_images) if i not in bad
    ]
    assert written.n_embedded == n_images - len(bad)
    assert written.skipped == {i: f"{i}.bad is bad" for i in sorted(bad)}
    assert progress == sorted(progress)
    assert progress[-1] == (n_images, n_images)
    # Again: nothing is left to do, and the same is said.
    again = write_shards(
        embedder,
        images,
        folder,
        shard_size=shard_size,
        metadata={"label": np.arange(n_images) % 3},
    )
    assert embedder.embedded == images
    assert again.n_embedded == 0
    assert again.skipped == written.skipped


class Stopped(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("torn", [False, True], ids=["before", "half done"])
def test_resumes_wherever_the_writing_stops(monkeypatch, tmp_path, torn):
    """Stop at the first, second, ... operation on files, until none is left."""
    images = names(17, {2, 9})
    real = {"sync": _partial.sync, "replace": os.replace}
    calls = [0, 0]

    def stopping(name, *args):
        calls[0] += 1
        if calls[0] != calls[1]:
            return real[name](*args)
        if torn and name == "sync" and "journal" in str(args[0].name):
            # The last line reaches the disk in part.
            args[0].flush()
            args[0].truncate(args[0].tell() - 7)
        raise Stopped

    monkeypatch.setattr(_partial, "sync", lambda file: stopping("sync", file))
    monkeypatch.setattr(os, "replace", lambda *a: stopping("replace", *a))
    for stop_at in range(1, 200):
        folder = tmp_path / str(stop_at)
        embedder, calls[:] = FakeEmbedder(3), [0, stop_at]
        try:
            write_shards(embedder, images, folder, shard_size=8)
            break
        except Stopped:
            n_before = len(embedder.embedded)
            write_shards(embedder, images, folder, shard_size=8)
        check_stored(folder, images, 8)
        twice = [n for n, c in collections.Counter(embedder.embedded).items() if c > 1]
        # Only what was in flight: at most one batch, the last one before the stop.
        assert len(twice) <= 3
        assert set(twice) <= set(embedder.embedded[max(0, n_before - 3) : n_before])
    else:
        raise AssertionError("the writing never ended")
    assert stop_at > 20


def stored_names(folder, images):
    """Read which images a folder has stored, in shards and in journals."""
    found = []
    for path in Path(folder, "skipped").glob("skipped_*.json"):
        found += [images[int(i)] for i in json.loads(path.read_text())]
    done = {p.stem for p in Path(folder, "img_emb").glob("img_emb_*.npy")}
    for stem in done:
        metadata = Path(folder, "metadata", f"{stem.replace('img_emb', 'metadata')}")
        from pyarrow import parquet

        table = parquet.read_table(metadata.with_suffix(".parquet"))
        found += table["image_path"].to_pylist()
    for path in Path(folder, "img_emb").glob(".*.journal"):
        if path.name[1:].removesuffix(".journal") not in done:
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    entry = json.loads(line)
                    found += images[entry["start"] : entry["stop"]]
    return set(found)


def test_resumes_after_being_killed_twenty_times(tmp_path):
    n_images, shard_size, n_kills = 1200, 130, 20
    folder, log = tmp_path / "shards", tmp_path / "log"
    log.touch()
    images = [f"{i}.bad" if i % 11 == 3 else f"{i}.png" for i in range(n_images)]
    rng = random.Random(0)
    script = Path(__file__).with_name("fake_embedder.py")
    command = [sys.executable, str(script), str(folder), str(log)]
    process = subprocess.Popen(
        [*command, str(n_images), str(shard_size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        stored, n_seen = set(), 0
        for kill in range(n_kills + 1):
            process.stdin.write("\n")
            process.stdin.flush()
            pid = int(process.stdout.readline())
            if kill < n_kills:
                # At a random moment after a few batches.
                enough = log.stat().st_size + rng.randrange(150)
                while log.stat().st_size <= enough:
                    time.sleep(0.0005)
                time.sleep(rng.random() * 0.01)
                os.kill(pid, signal.SIGKILL)
            status = int(process.stdout.readline())
            assert status == (signal.SIGKILL if kill < n_kills else 0)
            embedded = log.read_text().split("\n")[:-1]
            # What was stored before was not embedded again.
            assert stored.isdisjoint(embedded[n_seen:])
            n_seen, before = len(embedded), stored
            stored = stored_names(folder, images)
            assert before <= stored
        process.stdin.close()
    X = check_stored(folder, images, shard_size)
    assert X.column("label").tolist() == [
        n.split(".")[0][-1] for n in X.column("image_path")
    ]
    # Every kill costs at most the batch of 5 that was in flight.
    assert n_images <= n_seen <= n_images + 5 * n_kills


def test_writers_at_the_same_time_share_the_work(tmp_path):
    images = names(60)
    log = tmp_path / "log"
    results = [None] * 3

    def write(i):
        embedder = FakeEmbedder(3, log=log, pause=0.003)
        results[i] = write_shards(embedder, images, tmp_path / "shards", shard_size=9)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_stored(tmp_path / "shards", images, 9)
    assert sorted(log.read_text().split()) == sorted(images)
    assert sum(result.n_embedded for result in results) == 60
    for result in results:
        assert result.shards.shape == (60, N_COLUMNS)


def test_rows_that_do_not_fit_their_checksum_are_embedded_again(tmp_path):
    images = names(12)
    folder = tmp_path / "shards"

    def stop(n_done, n_images):
        if n_done == 9:
            raise Stopped

    with pytest.raises(Stopped):
        write_shards(FakeEmbedder(3), images, folder, progress=stop)
    (rows,) = (folder / "img_emb").glob(".*.rows")
    content = bytearray(rows.read_bytes())
    content[4 * N_COLUMNS * 2] ^= 1  # in the second of three batches
    rows.write_bytes(content)
    embedder = FakeEmbedder(3)
    write_shards(embedder, images, folder)
    assert embedder.embedded == images[3:]
    check_stored(folder, images, 65536)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": names(4)}, "n_images"),
        ({"images": ["0.png", "1.png", "3.png"]}, "metadata"),
        ({"shard_size": 3}, "shard_size"),
        ({"dtype": "float32"}, "dtype"),
        ({"metadata": {"label": [1, 2, 4]}}, "metadata"),
        ({"embedder": "other"}, "embedder"),
    ],
)
def test_another_run_is_refused(tmp_path, change, named):
    given = {
        "embedder": FakeEmbedder(),
        "images": names(3),
        "shard_size": 2,
        "metadata": {"label": [1, 2, 3]},
    }
    write_shards(**given, folder=tmp_path)
    if named == "embedder":
        change = {"embedder": FakeEmbedder()}
        FakeEmbedder.fingerprint, real = lambda self: "new", FakeEmbedder.fingerprint
    if named == "n_images":
        change = {**change, "metadata": {"label": [1, 2, 3, 4]}}
    try:
        with pytest.raises(ValueError, match=rf"has another .*{named}"):
            write_shards(**{**given, **change}, folder=tmp_path)
    finally:
        if named == "embedder":
            FakeEmbedder.fingerprint = real


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"no manifest\.json but 'mine\.txt'"):
        write_shards(FakeEmbedder(), names(3), tmp_path)


def test_damaged_manifest_is_named(tmp_path):
    write_shards(FakeEmbedder(), names(3), tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged"):
        write_shards(FakeEmbedder(), names(3), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 0}, "shard_size == 0, must be >= 1"),
        ({"dtype": "int8"}, "dtype must be one of .*, got 'int8'"),
        ({"unreadable": "keep"}, "unreadable must be one of .*, got 'keep'"),
        ({"metadata": {"label": [1, 2]}}, r"shape \(3,\), got shape \(2,\)"),
        ({"metadata": {"position": [1, 2, 3]}}, "other than position"),
        ({"metadata": {"label": np.array([1, "a", {}])}}, r"metadata\['label'\] must"),
        ({"images": []}, "at least one image"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path, change, message
):
    given = {"images": names(3), "folder": tmp_path / "new"}
    with pytest.raises(ValueError, match=message):
        write_shards(FakeEmbedder(), **{**given, **change})
    assert not (tmp_path / "new").exists()


def test_embeddings_that_float16_cannot_hold_are_refused(tmp_path):
    images = ["1.png", "70000.png"]
    with pytest.raises(ValueError, match="finite as float16, that of image 1 is not"):
        write_shards(FakeEmbedder(), images, tmp_path / "a")
    written = write_shards(FakeEmbedder(), images, tmp_path / "b", dtype="float32")
    assert written.shards[1, 0] == 70000


def test_unreadable_images_are_named_or_raise(tmp_path):
    images = names(6, {4})
    with pytest.raises(OSError, match=r"4\.bad is bad"):
        write_shards(FakeEmbedder(), images, tmp_path, unreadable="raise")
    with pytest.warns(UserWarning, match=r"1 images could not .* out: 4\.bad is bad"):
        write_shards(FakeEmbedder(), images, tmp_path)


def test_verbose_prints_a_line_for_every_shard(tmp_path, capsys):
    write_shards(FakeEmbedder(), names(7, {1}), tmp_path, shard_size=5, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.match(r"img_emb_0\.npy: 4 rows, 1 images left out, 4 embedded", lines[0])
    assert lines[1].endswith("7 of 7 images done")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A small checkpoint, and a folder of images with one that cannot be read."""
    pytest.importorskip("transformers")
    from clip_checkpoint import save_clip
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(7):
        image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        file = folder / "images" / f"class {i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    (folder / "images" / "class 0" / "2a.png").write_bytes(b"no image")
    (folder / "images" / "notes.txt").touch()
    return save_clip(folder / "clip"), folder / "images"


def test_shards_of_clip_embeddings_are_those_of_transform(pictures, tmp_path):
    model, folder = pictures
    embedder = CLIPEmbedder(model, batch_size=3, device="cpu")
    written = write_shards(embedder, folder, tmp_path, shard_size=4, dtype="float32")
    paths = written.shards.column("image_path")
    assert [Path(path).name for path in paths] == [
        f"{i}.png" for i in (0, 2, 4, 6, 1, 3, 5)
    ]
    expected = CLIPEmbedder(model, device="cpu").transform(list(paths))
    np.testing.assert_allclose(written.shards, expected, atol=1e-6)
    assert list(written.skipped) == [2]
    assert "X[2]" in written.skipped[2]
    assert "2a.png" in written.skipped[2]


def test_iter_transform_embeds_some_rows(pictures):
    model, folder = pictures
    images = sorted(map(str, folder.glob("*/?.png")))
    embedder = CLIPEmbedder(model, batch_size=2, device="cpu")
    batches = list(embedder.iter_transform(images, slice(1, 6)))
    assert [batch for batch, _, _ in batches] == [slice(1, 3), slice(3, 5), slice(5, 6)]
    found = np.concatenate([Z for _, Z, _ in batches])
    np.testing.assert_allclose(found, embedder.transform(images)[1:6], atol=1e-6)
    assert list(embedder.iter_transform(images, slice(3, 3))) == []
    with pytest.raises(ValueError, match="slice of step 1"):
        next(embedder.iter_transform(images, slice(0, 6, 2)))


def test_fingerprint_follows_what_decides_an_embedding(pictures, tmp_path):
    from clip_checkpoint import save_clip

    model, _ = pictures
    one = CLIPEmbedder(model).fingerprint()
    assert CLIPEmbedder(model, batch_size=3, device="cpu").fingerprint() == one
    assert CLIPEmbedder(save_clip(tmp_path / "same")).fingerprint() == one
    others = [
        CLIPEmbedder(model, normalize=False),
        CLIPEmbedder(model, dtype="bfloat16"),
        CLIPEmbedder(save_clip(tmp_path / "other", seed=1)),
    ]
    assert len({one, *(other.fingerprint() for other in others)}) == 4
