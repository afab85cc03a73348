"""Saving to a path: whole files, whoever else writes there and whatever is there."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
from model_files import fitted_models

from sklearn_fpe import load, save
from sklearn_fpe._io import _file

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file systems only")


@pytest.fixture
def model():
    return fitted_models()["binary"]


def contents():
    """Two contents that are as long as each other, and large enough to mix."""
    return [bytes([i]) * 300_000 for i in (1, 2)]


def is_whole(data):
    return data in contents()


def write_many(path, content, n):
    for _ in range(n):
        _file.write(path, content)


def test_threads_that_save_to_one_path_do_not_mix(tmp_path):
    path, errors, mixed = tmp_path / "model", [], []
    stop = threading.Event()
    write_many(path, contents()[0], 1)

    def write(content):
        try:
            write_many(path, content, 50)
        except Exception as error:
            errors.append(error)

    def read():
        while not stop.is_set():
            if not is_whole(path.read_bytes()):
                mixed.append(path)

    writers = [threading.Thread(target=write, args=(c,)) for c in contents() * 2]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not errors
    assert not mixed
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_save_to_one_path_do_not_mix(tmp_path):
    path = tmp_path / "model"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=write_many, args=(path, content, 50))
        for content in contents()
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert not path.exists() or is_whole(path.read_bytes())
    assert [process.exitcode for process in processes] == [0, 0]
    assert is_whole(path.read_bytes())
    assert list(tmp_path.iterdir()) == [path]


def test_estimators_that_threads_save_are_loaded_whole(tmp_path, model):
    path, errors = tmp_path / "model", []

    def work():
        try:
            for _ in range(10):
                save(model, path)
                load(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_a_killed_process_leaves_the_old_file_and_a_hidden_one(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"before")
    code = f"""
import os, signal
from sklearn_fpe._io import _file
_file.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
_file.write({str(path)!r}, b"after")
"""
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"before"
    (other,) = set(tmp_path.iterdir()) - {path}
    assert other.name.startswith(".sklearn_fpe.")
    assert other.name.endswith(".part")
    _file.write(path, b"next")
    assert path.read_bytes() == b"next"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(
    function, error, tmp_path, monkeypatch
):
    def fail(*args):
        raise error

    path = tmp_path / "model"
    path.write_bytes(b"before")
    monkeypatch.setattr(_file.os, function, fail)
    with pytest.raises(type(error)):
        _file.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(
            _file.os, name, lambda *a, n=name, f=function: (calls.append(n), f(*a))
        )
    _file.write(tmp_path / "model", b"content")
    assert calls[:2] == ["fsync", "replace"]
    if os.name == "posix":
        assert calls[2:] == ["fsync"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o400])
def test_a_file_that_is_replaced_keeps_its_mode(mode, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"before")
    path.chmod(mode)
    _file.write(path, b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        _file.write(tmp_path / "model", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o666 & ~umask


@posix
def test_a_link_stays_a_link(tmp_path, model):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    link, second = tmp_path / "link", tmp_path / "second"
    link.symlink_to("folder/target")
    second.symlink_to(link)
    # At first the link dangles.
    for path in (link, second):
        save(model, path)
        assert link.is_symlink()
        assert second.is_symlink()
        assert load(target).n_iter_ == model.n_iter_
        target.write_bytes(b"old")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        *("folder", "link", "second", "target")
    ]


@posix
def test_a_loop_of_links_is_an_error(tmp_path, model):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        save(model, tmp_path / "a")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_an_error(tmp_path, model):
    with pytest.raises(IsADirectoryError):
        save(model, tmp_path)
    with pytest.raises(FileNotFoundError):
        save(model, tmp_path / "no" / "folder")
    assert not list(tmp_path.iterdir())


@posix
def test_what_is_no_regular_file_is_not_replaced(tmp_path, model):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/null"):
        with pytest.raises(ValueError, match="regular file"):
            save(model, path)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_number_is_no_path(tmp_path, model):
    with (tmp_path / "open").open("wb") as file:
        for function in (load, lambda path: save(model, path)):
            with pytest.raises(TypeError):
                function(file.fileno())
        file.write(b"still open")


def test_a_long_name_is_no_trouble(tmp_path, model):
    path = tmp_path / ("n" * 255)
    save(model, path)
    assert load(path).n_iter_ == model.n_iter_


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_path_of_bytes_may_be_any(tmp_path, model):
    path = os.fsencode(tmp_path) + b"/\xff"
    save(model, path)
    assert load(path).n_iter_ == model.n_iter_
