import os
import unicodedata
from pathlib import Path

import pytest
import torch
from tests.samples import assert_sound, fill, levels, load, picture, write

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
    fill(root, ("train", "test"), classes=("ant",))


def _class_never_trained(root):
    fill(root, ("train", "test"))
    fill(root, ("val",), classes=("ant", "cow"))


def _unreadable_folder(root):
    fill(root)
    (root / "loop.png").symlink_to(root / "loop.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_unprintable_class, r"do\\ng"),
        (_empty_class, "without images: .*bee"),
        (_strange_split, "extra"),
        (_no_images, r"no images here \(seen: 1 \.txt\)"),
        (_class_missing_in_test, "test split has no image of 'cat10'"),
        (_one_class, "one class"),
        (_class_never_trained, "train split has no image of 'cow', which the validation split has"),
        (_unreadable_folder, r"loop\.png: not a file"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


# --- splits by their names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("Training", "Testing"),
        ("seg_train", "seg_test"),
        ("imagenet-train", "imagenet-test"),
        ("train_set", "test_set"),
        ("trainset", "testset"),
        ("TrainImages", "TestImages"),
        ("train2017", "test2017"),
    ],
)
def test_splits_are_recognised(tmp_path, train, test):
    fill(tmp_path, (train,))
    fill(tmp_path, (test,), first=100, count=3)
    data = load(tmp_path)
    assert_sound(data)
    assert data.train.classes == ("ant", "cat2", "cat10")
    assert sorted(levels(data.test)) == sorted(100 + 10 * i + label for i in range(3) for label in range(3))
    assert f"Train is '{train}'; validation is 10% of '{train}', drawn by seed 0; test is '{test}'." in data.notes


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev"])
def test_the_users_validation_split_is_kept(tmp_path, name):
    fill(tmp_path, ("train",))
    fill(tmp_path, (name,), first=100, count=2)
    data = load(tmp_path)
    assert min(levels(data.validation)) == 100
    assert len(data.validation) == 6
    assert max(levels(data.train) + levels(data.test)) < 100
    assert f"validation is '{name}'; test is 20% of 'train', held out by seed 0" in "".join(data.notes)


def test_splits_within_classes_are_kept(tmp_path):
    for name, label in (("ant", 0), ("bee", 1)):
        fill(tmp_path / name, ("train",), classes=("",), first=label)
        fill(tmp_path / name, ("val",), classes=("",), first=100 + label, count=3)
    data = load(tmp_path)
    assert data.train.classes == ("ant", "bee")
    assert sorted(levels(data.validation)) == [100, 101, 110, 111, 120, 121]
    assert data.validation.labels.tolist() == [level % 2 for level in levels(data.validation)]
    assert "Train is 'train'; validation is 'val'; test is 20% of 'train'" in "".join(data.notes)


def test_archives_unpack_to_a_folder_of_its_own_name(tmp_path):
    fill(tmp_path / "seg_train" / "seg_train")
    fill(tmp_path / "seg_test" / "seg_test", first=100)
    data = load(tmp_path)
    assert data.train.classes == ("ant", "cat2", "cat10")
    assert len(data.test) == 30


@pytest.mark.parametrize("base", ["images", "data/raw/v1", "My set"])
@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_folders_around_a_set_are_entered(tmp_path, base, splits):
    fill(tmp_path / base, splits)
    data = load(tmp_path)
    assert data.train.classes == ("ant", "cat2", "cat10")
    assert all(
        level % 10 == (2, 0, 1)[label] for level, label in zip(levels(data.train), data.train.labels, strict=True)
    )
    assert data.notes[0] == f"All images lie in '{base}', which is neither a split nor a class."


def test_a_folder_of_one_class_is_one_of_images_without_labels(tmp_path):
    fill(tmp_path, classes=("img_align_celeba",), count=20)
    assert not load(tmp_path).has_labels


def test_a_split_may_hold_its_classes_or_images_in_one_folder_more(tmp_path):
    """As in Tiny ImageNet, whose validation images lie in val/images and have their labels in a text."""
    fill(tmp_path / "train" / "images")
    fill(tmp_path / "test" / "test_images", first=100)
    fill(tmp_path, ("val",), classes=("images",), first=150)
    data = load(tmp_path)
    assert data.train.classes == ("ant", "cat2", "cat10")
    assert min(levels(data.test)) == 100
    assert "Split 'val' (10 images) has no labels and is not used." in data.notes
    assert max(levels(data.validation)) < 100


@pytest.mark.parametrize("tops", [("fold1", "fold2"), ("Trainingsdaten", "Testdaten"), ("photo", "sketch", "cartoon")])
def test_classes_that_all_hold_the_same_folders_may_be_splits(tmp_path, tops):
    fill(tmp_path, tops)
    with pytest.raises(DataError, match=r"hold the folders \['ant', 'cat10', 'cat2'\]\. If these are the classes"):
        load(tmp_path)


def test_images_and_what_belongs_to_them_are_no_classes(tmp_path):
    fill(tmp_path, classes=("images", "masks"))
    with pytest.raises(DataError, match=r"\['images'\] beside \['masks'\] names no class.*Pass .*/images to read"):
        load(tmp_path)
    fill(tmp_path / "b", ("ant", "bee"), classes=("images", "masks"))
    with pytest.raises(DataError, match=r"hold the folders \['images', 'masks'\]"):
        load(tmp_path / "b")


def test_what_cannot_be_listed_is_skipped_if_asked(tmp_path, monkeypatch):
    fill(tmp_path)
    (tmp_path / "ant" / "closed").mkdir()
    scan = os.scandir

    def refuse(place):
        if os.fspath(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="ant/closed: cannot be read \\(Permission denied\\)"):
        load(tmp_path)
    assert load(tmp_path, skip_bad=True).skipped == (("ant/closed", "cannot be read (Permission denied)"),)


def test_classes_whose_names_hold_a_split_are_classes(tmp_path):
    fill(tmp_path, classes=("bullet_train", "steam_train", "test_tube", "dog"))
    assert load(tmp_path).train.classes == ("bullet_train", "dog", "steam_train", "test_tube")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: fill(root, ("seg_train", "seg_test", "seg_pred")), r"\['seg_pred'\] are not"),
        (lambda root: fill(root, ("train", "train_extra", "test")), r"\['train_extra'\] are not"),
        (lambda root: fill(root, ("train", "more")), r"\['train'\] are splits by their names, \['more'\] are not"),
        (lambda root: fill(root, ("train", "Training", "test")), "Both 'Training' and 'train' would be train"),
        (lambda root: fill(root, ("val", "test")), "Expected one that is train"),
        (lambda root: fill(root, ("a/train", "a/test", "b/train", "b/test")), r"in \['a', 'b'\]\. Pass one of these"),
        (lambda root: (fill(root, ("ant", "bee"), ("train",)), fill(root, ("cow",), ("",))), "others do not"),
        (lambda root: fill(root, ("ant", "bee"), ("train", "more")), "others do not"),
    ],
)
def test_names_that_allow_two_readings_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


# --- what lies beside the images ------------------------------------------------------------------------------------


def test_what_is_no_image_is_ignored_and_counted(tmp_path):
    fill(tmp_path)
    for name in ("__MACOSX/ant/._1.png", "ant/Thumbs.db", "ant/.DS_Store", "ant/a.txt", "cat2/b.XML", "labels.csv"):
        write(tmp_path / name, b"")
    data = load(tmp_path)
    assert data.train.classes == ("ant", "cat2", "cat10")
    assert data.notes[0] == (
        "6 files that are no images were ignored: 1 .csv, 1 .txt, 1 .xml, 1 Thumbs.db, 1 __MACOSX, 1 hidden."
    )


def test_pictures_that_cannot_be_read_are_not_passed_over(tmp_path):
    fill(tmp_path)
    write(tmp_path / "ant" / "phone.heic", b"ftypheic")
    with pytest.raises(DataError, match=r"ant/phone\.heic: not an image in a known format"):
        load(tmp_path)


def test_images_beside_the_classes_are_counted(tmp_path):
    fill(tmp_path)
    write(tmp_path / "cover.png", picture(0))
    assert "1 images beside the class folders were ignored." in load(tmp_path).notes


def test_bad_images_are_skipped_and_listed(tmp_path):
    fill(tmp_path, ("train", "test"))
    bad = [f"train/ant/bad{i}.png" for i in range(7)]
    for name in bad:
        write(tmp_path / name, b"no picture")
    (tmp_path / "test" / "ant" / "gone.png").symlink_to(tmp_path / "nowhere")
    data = load(tmp_path, skip_bad=True)
    assert sorted(name for name, _ in data.skipped) == sorted([*bad, "test/ant/gone.png"])
    assert dict(data.skipped)[bad[0]].startswith("not an image")
    note = next(note for note in data.notes if "cannot be used" in note)
    assert note.startswith("8 images cannot be used and were left out: test/ant/gone.png: not a file inside")
    assert note.endswith("; and 3 more.")
    assert sorted(levels(data.train) + levels(data.validation)) == sorted(
        10 * i + k for i in range(10) for k in range(3)
    )
    assert len(data.test) == 30


def test_nothing_left_is_refused(tmp_path):
    fill(tmp_path, ("train", "test"))
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="No image is left in test"):
        load(tmp_path, skip_bad=True)


def test_links_are_followed_if_asked(tmp_path):
    root = tmp_path / "root"
    fill(root, classes=("ant", "bee"))
    write(tmp_path / "outside" / "1.png", picture(201))
    write(tmp_path / "cow" / "2.png", picture(202))
    (root / "ant" / "file.png").symlink_to(tmp_path / "outside" / "1.png")
    (root / "ant" / "more").symlink_to(tmp_path / "cow")
    with pytest.raises(DataError, match="2 images cannot be used"):
        load(root)
    data = load(root, follow_links=True)
    assert {201, 202} <= {*levels(data.train), *levels(data.validation), *levels(data.test)}
    (root / "ant" / "loop").symlink_to(root)
    with pytest.raises(DataError, match="ant/loop: a link to a folder that is read already"):
        load(root, follow_links=True)
    assert len(load(root, follow_links=True, skip_bad=True).skipped) == 1


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_images_without_classes_are_read_without_labels(tmp_path, splits):
    fill(tmp_path, splits, classes=("",), count=20)
    data = load(tmp_path)
    assert not data.has_labels
    assert data.train.classes == ()
    assert data.train.labels.unique().tolist() == [-1]
    assert "The images have no labels: a field can be trained and analysed, not classified." in data.notes
    with pytest.raises(DataError, match=r"^classify: the images of .* have no labels"):
        data.require_labels("classify")


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv"])
def test_labels_in_other_tables_are_said_not_to_be_read(tmp_path, name):
    fill(tmp_path, classes=("",), count=20)
    write(tmp_path / name, b"picture,label\nimg0.png,cat\n")
    (note,) = [note for note in load(tmp_path).notes if note.startswith("Beside the images lie ")]
    assert (name if name == "metadata.csv" else ".csv files") in note


def test_a_test_split_without_labels_is_not_used(tmp_path):
    fill(tmp_path, ("train",))
    fill(tmp_path, ("test",), classes=("",), first=100)
    data = load(tmp_path)
    data.require_labels("classify")
    assert "Split 'test' (10 images) has no labels and is not used." in data.notes
    assert max(levels(data.test)) < 100


def test_class_names_are_equal_however_their_accents_are_typed(tmp_path):
    fill(tmp_path, ("train",), classes=(unicodedata.normalize("NFC", "café"), "日本"))
    fill(tmp_path, ("test",), classes=(unicodedata.normalize("NFD", "café"), "日本"), first=100)
    data = load(tmp_path)
    assert data.train.classes == ("café", "日本")
    assert data.test.labels.bincount().tolist() == [10, 10]
