"""Folders of images: what is found, what is left out, and that it is said."""

import os
import shutil
from pathlib import Path

import pytest

from sklearn_fpe.embeddings import load_image_folder

Image = pytest.importorskip(
    "PIL.Image", reason="the extra 'clip' is not installed: Pillow is missing"
)


@pytest.fixture
def folder(tmp_path):
    """Three pictures of two classes."""
    root = tmp_path / "pictures"
    for name in ["cat/a.png", "cat/b.png", "dog/c.png"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(root / name)
    return root


def names(paths, folder):
    return [Path(path).relative_to(folder).as_posix() for path in paths]


ENDINGS = [".jfif", ".jpe", ".avif", ".webp", ".apng", ".ppm", ".tga", ".jp2", ".ico"]


def test_every_ending_that_pillow_decodes_is_found(folder):
    saved = [ending for ending in ENDINGS if ending in Image.registered_extensions()]
    for ending in saved:
        Image.new("RGB", (16, 16), "red").save(folder / "dog" / f"x{ending}")
    images = load_image_folder(folder, unreadable="raise")
    assert len(saved) >= 6
    assert set(names(images.paths[2:], folder)) == {
        "dog/c.png",
        *(f"dog/x{ending}" for ending in saved),
    }
    assert images.skipped.size == 0


@pytest.mark.parametrize("ending", [".eps", ".ps", ".h5", ".mpg", ".pdf", ".txt", ""])
def test_file_of_another_kind_is_reported(ending, folder):
    other = folder / "dog" / f"other{ending}"
    other.touch()
    images = load_image_folder(folder)
    assert images.skipped.tolist() == [str(other)]
    assert images.labels.tolist() == ["cat", "cat", "dog"]
    with pytest.raises(OSError, match=r"other.*' has no ending of an image"):
        load_image_folder(folder, unreadable="raise")
    with pytest.warns(UserWarning, match=r"1 files .*left out: .*other"):
        load_image_folder(folder, unreadable="skip")


def test_endings_that_are_given_are_a_choice(folder):
    Image.new("RGB", (8, 8)).save(folder / "dog" / "d.gif")
    images = load_image_folder(folder, extensions=[".png"], unreadable="raise")
    assert names(images.paths, folder) == ["cat/a.png", "cat/b.png", "dog/c.png"]
    assert names(images.skipped, folder) == ["dog/d.gif"]


@pytest.mark.parametrize(
    "name",
    ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", ".git", "lost+found", ".thumbs"],
)
@pytest.mark.parametrize("place", [".", "cat"])
def test_what_systems_leave_behind_is_ignored(name, place, folder):
    for file in [folder / place / name / "cat" / "a.png", folder / place / "Thumbs.db"]:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "cat" / "a.png", file)
    (folder / "cat" / "desktop.ini").touch()
    (folder / "cat" / "._a.png").touch()
    images = load_image_folder(folder, unreadable="raise")
    assert names(images.paths, folder) == ["cat/a.png", "cat/b.png", "dog/c.png"]
    assert images.classes.tolist() == ["cat", "dog"]
    assert images.skipped.size == 0


def test_links_inside_are_followed_and_links_outside_are_not(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(folder / "cat" / "a.png", outside / "secret.png")
    (folder / "dog" / "inside.png").symlink_to("../cat/a.png")
    links = {
        "cat/deep": outside,  # a folder
        "dog/gone.png": folder / "nowhere.png",
        "dog/loop.png": folder / "dog" / "loop.png",
        "dog/out.png": outside / "secret.png",
        "dog/up": folder,
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    images = load_image_folder(folder)
    found = ["cat/a.png", "cat/b.png", "dog/c.png", "dog/inside.png"]
    assert names(images.paths, folder) == found
    assert names(images.skipped, folder) == sorted(links)
    with pytest.raises(OSError, match=r"deep' is a link that leads out of path"):
        load_image_folder(folder, unreadable="raise")


@pytest.mark.parametrize("target", ["outside", "pictures", "."])
def test_class_that_is_a_link_outside_is_refused(target, folder, tmp_path):
    (tmp_path / "outside").mkdir()
    shutil.copy(folder / "cat" / "a.png", tmp_path / "outside" / "secret.png")
    (folder / "zebra").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"zebra' holds none: .* leads out of path"):
        load_image_folder(folder)


def test_links_to_the_folder_and_between_classes(folder, tmp_path):
    (folder / "wolf").symlink_to("dog")
    (tmp_path / "link").symlink_to(folder)
    images = load_image_folder(tmp_path / "link", unreadable="raise")
    expected = ["cat/a.png", "cat/b.png", "dog/c.png", "wolf/c.png"]
    assert names(images.paths, tmp_path / "link") == expected


def test_pipe_is_reported_and_not_opened(folder):
    os.mkfifo(folder / "cat" / "pipe.png")
    for unreadable in ["keep", "skip"]:
        if unreadable == "skip":
            with pytest.warns(UserWarning, match="1 files"):
                images = load_image_folder(folder, unreadable=unreadable)
        else:
            images = load_image_folder(folder, unreadable=unreadable)
        assert names(images.skipped, folder) == ["cat/pipe.png"]
    with pytest.raises(OSError, match=r"pipe\.png' is not a regular file"):
        load_image_folder(folder, unreadable="raise")


def test_folder_that_cannot_be_listed_is_an_error(folder, monkeypatch):
    (folder / "cat" / "deep").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="deep"):
        load_image_folder(folder)


def test_bomb_is_left_out(folder):
    Image.new("1", (8200, 8200)).save(folder / "cat" / "bomb.png")
    with pytest.warns(UserWarning, match=r"1 files .*bomb\.png"):
        images = load_image_folder(folder, unreadable="skip")
    assert len(images.paths) == 3


def test_class_without_images_says_why(folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds none\.$"):
        load_image_folder(folder)
    (folder / "empty" / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"empty' holds none: .*no ending of an image"):
        load_image_folder(folder)


def test_paths_are_plain_text_in_messages(folder):
    (folder / "cat" / "a.png").write_bytes(b"no image")
    with pytest.raises(OSError, match=rf"^'{folder}/cat/a\.png' cannot be read"):
        load_image_folder(folder, unreadable="raise")
