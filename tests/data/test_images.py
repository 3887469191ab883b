"""Lists and folders of images: what is read, and every mistake with its line or path."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
from image_files import encoded, huge_png, picture
from PIL import Image

from archiver.data.images import PICTURES, read_images
from archiver.errors import DataError

LABELS = {0: "cat", 1: "dog"}


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(("a.png", "b.jpg", "c.webp")):
        kind = {"png": "png", "jpg": "jpeg", "webp": "webp"}[name[2:]]
        (tmp_path / name).write_bytes(encoded(picture(seed=index), kind))
    return tmp_path


def read(source, columns=None, **more):
    return read_images(source, columns, **{"id2label": LABELS, "max_pixels": 10_000, **more})


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("list.tsv", "a.png\tcat\nb.jpg\t1\n\nc.webp\tdog\n", {"image": 0, "label": 1}),
        ("list.csv", "label,file\ncat,a.png\n1,b.jpg\ndog,c.webp\n", {"image": "file", "label": "label"}),
        ("list.csv", "label,image\ncat,a.png\n1,b.jpg\ndog,c.webp\n", None),
        ("list.jsonl", "".join(json.dumps({"image": image, "label": label}) + "\n"
                               for image, label in (("a.png", "cat"), ("b.jpg", 1), ("c.webp", "dog"))), None),
    ],
)  # fmt: skip
def test_lists(folder, name, text, columns):
    (folder / name).write_text(text)
    found = read(folder / name, columns)
    assert [(item.path, item.label) for item in found] == [("a.png", 0), ("b.jpg", 1), ("c.webp", 1)]
    assert found[0].file.body == (folder / "a.png").read_bytes()
    assert (found[0].file.width, found[0].file.where) == (40, "a.png")
    assert len(repr(found[0])) < 200 and found[0].digest in repr(found[0])


def test_paths_alone_and_a_folder_without_folders(folder):
    (folder / "list.txt").write_text("a.png\nc.webp\n")
    assert [item.label for item in read(folder / "list.txt")] == [None, None]
    (folder / "list.txt").unlink()
    assert [item.path for item in read(folder)] == ["a.png", "b.jpg", "c.webp"]


def test_a_folder_for_each_label(folder, tmp_path):
    for name in ("dog", "cat"):
        (tmp_path / "set" / name / "deep").mkdir(parents=True)
    (tmp_path / "set" / "dog" / "x.png").write_bytes((folder / "a.png").read_bytes())
    (tmp_path / "set" / "cat" / "deep" / "Y.JPG").write_bytes((folder / "b.jpg").read_bytes())
    (tmp_path / "set" / "cat" / ".hidden").write_text("")
    found = read(tmp_path / "set")
    assert [(item.path, item.label) for item in found] == [("cat/deep/Y.JPG", 0), ("dog/x.png", 1)]
    (tmp_path / "set" / "owl").mkdir()
    (tmp_path / "set" / "owl" / "z.png").write_bytes((folder / "a.png").read_bytes())
    (tmp_path / "set" / "dog" / "notes.txt").write_text("")
    (tmp_path / "set" / "w.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(DataError, match="the folder set has 3 mistakes: correct or remove the files") as caught:
        read(tmp_path / "set")
    assert caught.value.problems == [
        "w.png lies beside the labels' folders: put each image into one of them",
        "dog/notes.txt has the suffix '.txt'; allowed: .png, .jpg, .jpeg, .webp, .gif, .bmp",
        "owl/z.png: label 'owl' is not in cat, dog, nor an id from 0 to 1",
    ]
    assert len(read(tmp_path / "set" / "cat" / "deep")) == 1


def test_labels_that_are_several(folder):
    (folder / "list.tsv").write_text("a.png\tcat|dog\nb.jpg\t\nc.webp\tdog\n")
    found = read(folder / "list.tsv", {"image": 0, "label": 1}, multi_label=True)
    assert [item.label for item in found] == [(0, 1), (), (1,)]
    assert [item.label for item in read(folder / "list.tsv", {"image": 0, "label": 1}, wants_labels=False)] == [
        None
    ] * 3


def test_every_mistake_with_its_line(folder):
    (folder / "huge.png").write_bytes(huge_png(3_000, 3_000))
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:900])
    (folder / "text.png").write_text("no image")
    rows = [
        "a.png\tcat",
        "gone.png\tcat",
        "huge.png\tcat",
        "cut.png\tdog",
        "text.png\tdog",
        "b.jpg\towl",
        "c.webp",
        " \tcat",
    ]
    (folder / "list.tsv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="list.tsv has 7 mistakes: correct or remove the rows") as caught:
        read(folder / "list.tsv", {"image": 0, "label": 1})
    expected = [
        "list.tsv:2: gone.png cannot be read: No such file or directory; name an image, relative to the list",
        "list.tsv:3: huge.png has 3000 × 3000 = 9000000 pixels; at most 10000 are allowed",
        "list.tsv:4: cut.png ends before its last pixel",
        "list.tsv:5: text.png is no image that can be read",
        "list.tsv:6: label 'owl' is not in cat, dog",
        "list.tsv:7: has 1 columns, the first row has 2",
        "list.tsv:8: image must be the path of a file; found str ' '",
    ]
    assert len(caught.value.problems) == 7
    assert all(found.startswith(start) for found, start in zip(caught.value.problems, expected, strict=True))


def test_what_holds_no_images(tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(DataError, match="none.txt holds no images: it needs at least one"):
        read(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        read(tmp_path / "empty")
    with pytest.raises(
        DataError, match="hub://a/b:train: images are read from files; name a list of images, or a folder"
    ):
        read("hub://a/b:train")


def test_pictures_for_want_of_data():
    found = read(PICTURES, max_pixels=1)
    assert len(found) == 32 and len({item.digest for item in found}) == 32
    assert found == read(PICTURES, max_pixels=1)
    assert Image.open(BytesIO(found[0].file.body)).size == (found[0].file.width, found[0].file.height)
