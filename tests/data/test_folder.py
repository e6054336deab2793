import os
from pathlib import Path

import pytest
import torch
from tests.samples import assert_sound, fill, load, picture, write

from tdsm.base.errors import DataError


def test_folder_of_classes(tmp_path):
    fill(tmp_path, count=12)
    write(tmp_path / "README.md", b"about")
    write(tmp_path / "ant" / ".hidden.png", b"")
    write(tmp_path / ".cache" / "x.png", b"")
    data = load(tmp_path, validation_fraction=0.2)
    assert_sound(data)
    assert data.train.classes == ("ant", "cat2", "cat10")
    ids, images = (
        torch.cat([getattr(part, name) for part in (data.train, data.validation, data.test)])
        for name in ("ids", "images")
    )
    assert images[ids.argsort()][:12, 0, 0, 0].tolist() == [10 * i + 2 for i in range(12)]
    assert data.notes[0] == "3 files that are no images were ignored: 1 .md, 2 hidden."
    assert "no test split" in data.notes[1]


def test_folder_of_splits(tmp_path):
    fill(tmp_path, ("train", "test"))
    data = load(tmp_path)
    assert_sound(data)
    assert len(data.test) == 30
    assert "Train is 'train'; validation is 10% of 'train', drawn by seed 0; test is 'test'." in data.notes
    assert data.name == tmp_path.name


def test_a_class_called_train_is_a_class(tmp_path):
    fill(tmp_path, classes=("car", "train"))
    assert load(tmp_path).train.classes == ("car", "train")


def test_mixed_sizes_need_image_size(tmp_path):
    fill(tmp_path)
    write(tmp_path / "ant" / "odd.png", picture(3, (5, 9)))
    with pytest.raises(DataError, match=r"5×9.*ant/odd\.png.*Set image_size"):
        load(tmp_path)
    assert load(tmp_path, image_size=4).train.images.shape[1:] == (1, 4, 4)


def test_all_bad_files_of_all_splits_are_listed_at_once(tmp_path):
    fill(tmp_path, ("train", "test"))
    write(tmp_path / "train" / "ant" / "notes.png", b"hello")
    write(tmp_path / "train" / "cat2" / "half.png", picture(0, kind="BMP")[:-5])
    write(tmp_path / "test" / "ant" / "void.png", b"")
    with pytest.raises(DataError, match="3 images cannot be used") as caught:
        load(tmp_path)
    for name in ("train/ant/notes.png: not an image", "train/cat2/half.png: damaged", "test/ant/void.png: is empty"):
        assert name in str(caught.value)


def test_links_out_of_the_root_are_refused(tmp_path):
    root = tmp_path / "root"
    fill(root)
    write(tmp_path / "outside" / "secret.png", picture(1))
    (root / "ant" / "inner.png").symlink_to(root / "ant" / "img0.png")
    load(root)
    (root / "ant" / "leak.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "ant" / "broken.png").symlink_to(root / "nowhere.png")
    (root / "cat2" / "more").symlink_to(tmp_path / "outside")
    (root / "dog").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "ant" / "pipe.png")
    with pytest.raises(DataError, match="5 images cannot be used") as caught:
        load(root)
    assert all(name in str(caught.value) for name in ("leak.png", "broken.png", "cat2/more", "dog", "pipe.png"))


def test_odd_file_names_are_read(tmp_path):
    fill(tmp_path)
    for name in ("a b.png", "ü 日本.PNG", "new\nline.png", "no ending", "%20..png", "-rf.png"):
        write(tmp_path / "ant" / name, picture(5))
    (Path(os.fsdecode(os.fsencode(tmp_path / "ant") + b"/\xff.png"))).write_bytes(picture(6))
    assert len(load(tmp_path, validation_fraction=0.2).train) > 20


def _unprintable_class(root):
    fill(root, classes=("cat", "do\ng"))


def _empty_class(root):
    fill(root)
    (root / "bee").mkdir()


def _strange_split(root):
    fill(root, ("train", "test", "extra"))


def _no_images(root):
    write(root / "1.txt", b"")


def _class_missing_in_test(root):
    fill(root, ("train",))
    fill(root, ("test",), classes=("ant", "cat2"))


def _one_class(root):
    fill(root, classes=("ant",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_unprintable_class, r"do\\ng"),
        (_empty_class, "without images: .*bee"),
        (_strange_split, "extra"),
        (_no_images, "no images here, but 1 .txt"),
        (_class_missing_in_test, "test split has no image of 'cat10'"),
        (_one_class, "one class"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path)
