"""Lazy arrays of rows in many files: indexing, labels, damage, memory."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import cut, write_metadata, write_npy, write_parquet
from sklearn.model_selection import KFold, cross_validate, train_test_split

from sklearn_fpe.datasets import ShardError, _npy, open_shards

KINDS = ["npy", "parquet", "fixed"]
N_ROWS, N_COLUMNS = 83, 3
BOUNDS = [10, 10, 11, 40, 41, 60, 61, 62, 63, 64, 70]  # twelve files, one of them empty
X = np.random.default_rng(0).normal(size=(N_ROWS, N_COLUMNS)).astype(np.float32)
LABELS = np.array([f"class {i % 5}" for i in range(N_ROWS)], dtype=object)


def write(folder, kind, X=X, bounds=BOUNDS):
    parts = cut(X, bounds)
    if kind == "npy":
        return write_npy(folder, parts)
    pytest.importorskip("pyarrow", reason="pyarrow, of the extra 'parquet'")
    return write_parquet(folder, parts, fixed=kind == "fixed")


@pytest.fixture(scope="module", params=KINDS)
def shards(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "img_emb"
    write(folder, request.param)
    if request.param == "npy":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_npy.NpyFile, "most_open", 3)
            yield open_shards(folder)
    else:
        yield open_shards(folder)


def row_keys(n):
    """Return indices of rows that NumPy and shards understand alike."""
    ends = st.one_of(st.none(), st.integers(-n - 3, n + 3))
    steps = st.one_of(st.none(), st.integers(-5, 5).filter(bool))
    keys = [
        st.builds(slice, ends, ends, steps),
        st.lists(st.booleans(), min_size=n, max_size=n).map(
            lambda b: np.array(b, bool)
        ),
    ]
    if n:
        positions = st.lists(st.integers(-n, n - 1), min_size=1, max_size=30)
        keys += [positions, positions.map(np.array)]
    return st.one_of(*keys)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_index_gives_what_it_gives_of_the_concatenation(shards, data):
    lazy, expected, labels = shards, X, np.arange(N_ROWS)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(row_keys(len(expected)))
        lazy = lazy[(key, ...) if data.draw(st.booleans()) else key]
        expected, labels = expected[key], labels[key]
    assert lazy.shape == expected.shape
    assert len(lazy) == len(expected)
    assert lazy.size == expected.size
    assert lazy.nbytes == expected.nbytes
    assert (lazy.dtype, lazy.ndim) == (expected.dtype, 2)
    np.testing.assert_array_equal(lazy, expected)
    assert [row.tolist() for row in lazy] == expected.tolist()
    # The promises that reading relies on.
    order = lazy.file_order()
    rows = labels if order is None else labels[order]
    assert (np.diff(rows) >= 0).all()
    again = pickle.loads(pickle.dumps(lazy))
    np.testing.assert_array_equal(again, expected)
    assert again.digest() == lazy.digest()


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_columns_and_single_rows_are_read(shards, data):
    row = data.draw(st.integers(-N_ROWS, N_ROWS - 1))
    column = data.draw(
        st.one_of(
            st.integers(-N_COLUMNS, N_COLUMNS - 1),
            st.builds(slice, st.integers(-4, 4), st.integers(-4, 4)),
        )
    )
    for key in (row, (row, column), (slice(None, None, 7), column), (..., column)):
        found = shards[key]
        assert isinstance(found, np.ndarray | np.generic)
        np.testing.assert_array_equal(found, X[key])


@pytest.mark.parametrize(
    "key",
    [
        *(N_ROWS, -N_ROWS - 1, [0, N_ROWS], None, True, "a", 1.5, np.ones((2, 2), int)),
        *(np.ones(3, bool), (0, 0, 0), (..., ...), (slice(None), [0, 1]), (0, None)),
        *([1.5], np.array([], float)),
    ],
    ids=str,
)
def test_other_indices_are_refused(shards, key):
    with pytest.raises(IndexError):
        shards[key]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_runs_are_the_row_groups_in_any_view(shards, data):
    lazy = shards[data.draw(row_keys(N_ROWS))]
    order = lazy.file_order()
    n = len(lazy)
    index = data.draw(st.sets(st.integers(0, n - 1))) if n else ()
    index = np.array(sorted(index), dtype=np.int64)
    if order is not None:
        index = order[index]
    starts = lazy.runs(index)
    if shards.files[0].endswith(".npy"):
        assert starts is None
        return
    groups = [lazy.place(int(i)) for i in index]
    groups = [(p.split(" of ")[1], int(p.split()[1]) // 7) for p in groups]
    expected = [i for i, g in enumerate(groups) if i == 0 or g != groups[i - 1]]
    assert starts.tolist() == expected


def test_rows_come_from_where_they_are_said_to_be(shards):
    starts = [0, *BOUNDS]
    for row in range(N_ROWS):
        _, number, _, path = shards.place(row).split()
        i = int(Path(path.strip("'")).stem.split("_")[-1])
        assert starts[i] + int(number) == row


def test_numpy_decides_the_type_and_no_view_is_promised(shards):
    assert np.asarray(shards, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.array(shards, copy=True), X)
    with pytest.raises(ValueError, match="without being copied"):
        np.asarray(shards, copy=False)


def test_what_cannot_fit_is_not_tried(shards, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 20)
    with pytest.raises(
        MemoryError, match=r"shape \(83, 3\) takes .*some rows at a time"
    ):
        np.asarray(shards)
    assert np.asarray(shards[:20]).shape == (20, 3)


def test_a_pickle_holds_paths_and_no_rows(tmp_path):
    write_npy(tmp_path, [np.zeros((20_000, 10))] * 2)
    assert len(pickle.dumps(open_shards(tmp_path))) < 2000
    assert len(pickle.dumps(open_shards(tmp_path)[5:])) < 2000


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_bounded_number_of_files_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(_npy.NpyFile, "most_open", 5)
    write_npy(tmp_path, np.split(np.arange(200.0).reshape(100, 2), 50))
    lazy = open_shards(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    parts = [lazy[i::7] for i in range(7)]
    for part in parts:
        np.asarray(part)
        assert len(os.listdir("/proc/self/fd")) <= before + 5


# --------------------------------------------------------------------------------------
# Which files, and which labels
# --------------------------------------------------------------------------------------


def test_files_are_in_numeric_order_and_others_are_left_out(tmp_path):
    for i in (0, 2, 10, 9, 100):
        np.save(tmp_path / f"img_emb_{i}.npy", np.full((1, 1), i))
    np.save(tmp_path / ".img_emb_1.npy", np.zeros((1, 1)))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "img_emb_3.npy").mkdir()
    assert np.asarray(open_shards(tmp_path)).ravel().tolist() == [0, 2, 9, 10, 100]


def test_lists_of_folders_and_files_keep_their_order(tmp_path):
    write_npy(tmp_path / "a", [np.full((1, 1), 1), np.full((1, 1), 2)])
    (one,) = write_npy(tmp_path / "b", [np.full((2, 1), 3)])
    lazy = open_shards([str(one), tmp_path / "a"])
    assert np.asarray(lazy).ravel().tolist() == [3, 3, 1, 2]
    assert [Path(p).parent.name for p in lazy.files] == ["b", "a", "a"]
    assert open_shards(one).shape == (2, 1)


def test_column_is_in_the_order_of_the_rows(tmp_path, shards):
    pytest.importorskip("pyarrow")
    parts = [*map(list, cut(LABELS, BOUNDS))]
    numbers = [*cut(np.arange(N_ROWS), BOUNDS)]
    if shards.files[0].endswith(".npy"):
        write(tmp_path / "img_emb", "npy")
        write_metadata(tmp_path / "metadata", label=parts, number=numbers)
        lazy = open_shards(tmp_path / "img_emb")
    else:
        columns = {"label": parts, "number": numbers}
        write_parquet(tmp_path / "img_emb", cut(X, BOUNDS), columns=columns)
        lazy = open_shards(tmp_path / "img_emb")
    assert lazy.columns == ["label", "number"]
    rng = np.random.default_rng(0)
    for rows in (slice(None), slice(70, 3, -2), rng.integers(0, N_ROWS, 50), [4], []):
        expected = np.arange(N_ROWS)[
            rows if len(np.shape(rows)) == 0 or len(rows) else []
        ]
        assert lazy[rows].column("number").tolist() == expected.tolist()
        assert lazy[rows].column("label").tolist() == LABELS[expected].tolist()


@pytest.fixture
def with_metadata(tmp_path):
    pytest.importorskip("pyarrow")
    write_npy(tmp_path / "img_emb", [X[:30], X[30:50], X[50:]])
    numbers = [np.arange(30), np.arange(30, 50), np.arange(50, N_ROWS)]
    return tmp_path, write_metadata(tmp_path / "metadata", number=numbers)


def test_metadata_may_lie_elsewhere(with_metadata):
    folder, files = with_metadata
    shutil.move(folder / "metadata", folder / "elsewhere")
    files = [folder / "elsewhere" / file.name for file in files]
    assert open_shards(folder / "img_emb").columns == []
    for metadata in (folder / "elsewhere", files[::-1]):
        lazy = open_shards(folder / "img_emb", metadata=metadata)
        assert lazy.column("number").tolist() == list(range(N_ROWS))


@pytest.mark.parametrize("explicit", [False, True])
def test_missing_metadata_are_named(with_metadata, explicit):
    folder, files = with_metadata
    files[1].unlink()
    with pytest.raises(ShardError, match=r"img_emb_1\.npy' has no(ne| metadata)"):
        open_shards(
            folder / "img_emb", metadata=folder / "metadata" if explicit else None
        ).column("number")


def test_metadata_of_another_length_or_type_are_named(with_metadata):
    folder, files = with_metadata
    lazy = open_shards(folder / "img_emb")
    with pytest.raises(ShardError, match=r"metadata_0\.parquet' has no column 'label'"):
        lazy.column("label")
    write_metadata(folder / "new", number=[[1], [2], [*"abc"]])
    os.replace(folder / "new" / "metadata_2.parquet", files[2])
    with pytest.raises(
        ShardError, match=r"metadata_2\.parquet' must have as many rows"
    ):
        lazy.column("number")
    write_metadata(folder / "new", number=[[1], [2], ["a"] * (N_ROWS - 50)])
    os.replace(folder / "new" / "metadata_2.parquet", files[2])
    with pytest.raises(ShardError, match=r"one type, .*metadata_2\.parquet"):
        lazy.column("number")
    files[0].write_bytes(files[0].read_bytes()[:-9])
    with pytest.raises(ShardError, match=r"metadata_0\.parquet' cannot be read"):
        lazy.column("number")


# --------------------------------------------------------------------------------------
# Damage
# --------------------------------------------------------------------------------------


def as_object(path):
    np.save(path, np.array([[1, 2, 3]], dtype=object), allow_pickle=True)


def flip_type(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'<f4'", b"'<x4'"))


DAMAGES = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-5]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "empty": lambda p: p.write_bytes(b""),
    "not npy": lambda p: p.write_bytes(b"\x00" * 300),
    "header cut": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "unknown type": flip_type,
    "pickle": as_object,
    "width": lambda p: np.save(p, np.zeros((4, 2), np.float32)),
    "type": lambda p: np.save(p, np.zeros((4, 3), np.float64)),
    "one axis": lambda p: np.save(p, np.zeros(3, np.float32)),
    "three axes": lambda p: np.save(p, np.zeros((3, 3, 3), np.float32)),
    "no columns": lambda p: np.save(p, np.zeros((3, 0), np.float32)),
    "complex": lambda p: np.save(p, np.zeros((3, 3), np.complex64)),
    "strings": lambda p: np.save(p, np.full((3, 3), "a")),
    "fields": lambda p: np.save(p, np.zeros((3, 3), [("a", "f4")])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_npy_file_is_named_when_it_is_opened(tmp_path, damage):
    paths = write(tmp_path, "npy")
    DAMAGES[damage](paths[3])
    with pytest.raises(ShardError, match=r"img_emb_3\.npy"):
        open_shards(tmp_path)


def replace_parquet(path, part, **settings):
    (new,) = write_parquet(path.parent / "new", [np.asarray(part)], **settings)
    os.replace(new, path)


def nested(path, rows):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"embedding": pa.array(rows, pa.list_(pa.float32()))}), path
    )


def in_the_middle(path, value):
    content = bytearray(path.read_bytes())
    content[4:60] = bytes([value]) * 56
    path.write_bytes(content)


PARQUET_DAMAGES = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-5]),
    "empty": lambda p: p.write_bytes(b""),
    "no embeddings": lambda p: write_metadata(p.parent / "m", n=[[1]])[0].replace(p),
    "width": lambda p: replace_parquet(p, np.zeros((4, 2), np.float32)),
    "type": lambda p: replace_parquet(p, np.zeros((4, 3), np.float64)),
    "first row empty": lambda p: nested(p, [[], [1, 2, 3]]),
    "page": lambda p: in_the_middle(p, 255),
    "first row missing": lambda p: nested(p, [None, [1, 2, 3]]),
}


@pytest.mark.parametrize("damage", PARQUET_DAMAGES)
def test_a_damaged_parquet_file_is_named_when_it_is_opened(tmp_path, damage):
    paths = write(tmp_path, "parquet")
    PARQUET_DAMAGES[damage](paths[3])
    with pytest.raises(ShardError, match=r"img_emb_3\.parquet"):
        open_shards(tmp_path)


LATER = {
    "ragged": (lambda p: nested(p, [[1, 2, 3], [1, 2]]), "length 3 .* row 1 has 2"),
    "missing": (lambda p: nested(p, [[1, 2, 3], None]), "row 1 has none"),
    "missing number": (
        lambda p: nested(p, [[1, 2, 3], [1, None, 2]]),
        "missing number",
    ),
    "page": (lambda p: in_the_middle(p, 255), "cannot be read"),
}


@pytest.mark.parametrize("damage", LATER)
def test_damage_inside_a_parquet_file_is_named_when_it_is_read(tmp_path, damage):
    change, message = LATER[damage]
    # The length of the lists is read with the first row, or stands in the type.
    paths = write(tmp_path, "fixed" if damage == "page" else "parquet")
    change(paths[3])
    lazy = open_shards(tmp_path)
    for _ in range(2):
        with pytest.raises(ShardError, match=rf"img_emb_3\.parquet' .*{message}"):
            np.asarray(lazy)
    assert np.asarray(lazy[:10]).shape == (10, 3)


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("was_read", [False, True])
def test_a_file_that_changes_after_it_was_opened_is_named(tmp_path, kind, was_read):
    paths = write(tmp_path, kind)
    lazy = open_shards(tmp_path)
    if was_read:
        np.asarray(lazy)
    if kind == "parquet" and was_read:
        lazy = pickle.loads(pickle.dumps(lazy))  # opens the files anew
    os.truncate(paths[3], paths[3].stat().st_size - 4)
    with pytest.raises(ShardError, match=rf"img_emb_3\.{kind}'"):
        np.asarray(lazy)


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_a_file_that_is_gone_is_named(tmp_path, kind):
    paths = write(tmp_path, kind)
    lazy = open_shards(tmp_path)
    paths[3].unlink()
    with pytest.raises(FileNotFoundError, match="img_emb_3"):
        np.asarray(lazy)


def test_wrong_paths_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must exist, got '.*none'"):
        open_shards(tmp_path / "none")
    write_npy(tmp_path / "img_emb", [X])
    with pytest.raises(FileNotFoundError, match="metadata must exist"):
        open_shards(tmp_path / "img_emb", metadata=tmp_path / "none")
    with pytest.raises(
        ShardError, match=r"must hold .* Pass one of its .*\['img_emb'\]"
    ):
        open_shards(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"folder, \.npy or \.parquet, got"):
        open_shards(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="got none"):
        open_shards([])
    (tmp_path / "img_emb" / "img_emb_1.parquet").touch()
    with pytest.raises(ShardError, match=r"all \.npy or all \.parquet"):
        open_shards(tmp_path / "img_emb")


def test_column_of_embeddings_is_chosen_by_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lists = {"image": [[1.0, 2.0]], "text": [[3.0, 4.0]]}
    parquet.write_table(pa.table({**lists, "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ShardError, match=r"one column .*\['image', 'text'\]: name it"):
        open_shards(tmp_path)
    with pytest.raises(ShardError, match="in column 'n'; its"):
        open_shards(tmp_path, column="n")
    lazy = open_shards(tmp_path, column="text")
    assert np.asarray(lazy).tolist() == [[3, 4]]
    assert lazy.columns == ["image", "n"]


def test_other_layouts_of_npy_are_read(tmp_path):
    forms = {
        "big endian": X.astype(">f4"),
        "column-major": np.asfortranarray(X),
        "native": X,
    }
    for i, part in enumerate(forms.values()):
        np.save(tmp_path / f"x_{i}.npy", part)
    lazy = open_shards(tmp_path)
    assert lazy.dtype == np.float32
    np.testing.assert_array_equal(lazy, np.concatenate([X] * 3))


# --------------------------------------------------------------------------------------
# scikit-learn
# --------------------------------------------------------------------------------------


def test_splits_read_nothing(shards, monkeypatch):
    def read(self, rows):
        raise AssertionError("rows were read")

    monkeypatch.setattr(type(shards), "read", read)
    train, test, y_train, _ = train_test_split(shards, LABELS, random_state=0)
    assert type(train) is type(test) is type(shards)
    assert len(train) == len(y_train)
    index, _ = next(KFold(3).split(shards))
    assert shards[index].shape == (len(index), N_COLUMNS)


def test_estimators_of_scikit_learn_take_them(shards):
    from sklearn.linear_model import RidgeClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cross_validate(RidgeClassifier(), shards, LABELS, cv=3)
    expected = cross_validate(RidgeClassifier(), X, LABELS, cv=3)
    np.testing.assert_array_equal(found["test_score"], expected["test_score"])


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    import sys

    write_npy(tmp_path / "img_emb", [X])
    write_paths = [tmp_path / "a.parquet"]
    write_paths[0].touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert open_shards(tmp_path / "img_emb").shape == X.shape
    with pytest.raises(ImportError, match=r"sklearn-fpe\[parquet\]"):
        open_shards(write_paths)
