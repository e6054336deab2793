from pathlib import PurePath

import pytest

from tdsm.base.errors import DataError, UsageError
from tdsm.data.names import choose_config, find_roles, group_files, locate, split_name


@pytest.mark.parametrize(
    ("name", "role", "rest"),
    [
        ("Train", "train", ""),
        ("TRAINING", "train", ""),
        ("seg_train", "train", "seg"),
        ("val2017", "validation", "2017"),
        ("ValImages", "validation", ""),
        ("dev", "validation", ""),
        ("t10k", "test", ""),
        ("test-split", "test", ""),
        ("emnist-letters-test", "test", "emnist-letters"),
        ("test_tube", "test", "tube"),
        ("training_day", "train", "day"),
        ("device", None, "device"),
        ("contest", None, "contest"),
        ("trains", None, "trains"),
        ("train_val", None, "train-val"),
        ("images", None, ""),
    ],
)
def test_split_words(name, role, rest):
    said = split_name(name)
    assert (said.role, said.rest) == (role, rest)


@pytest.mark.parametrize(
    ("path", "config", "split"),
    [
        ("train-00000-of-00001.parquet", "default", "train"),
        ("data/train-00003-of-00010-a09b74b3ef9c3b56.parquet", "default", "train"),
        ("Test/0000.parquet", "default", "test"),
        ("default/partial-train/0000.parquet", "default", "train"),
        ("plain_text/unsupervised-00000-of-00001.parquet", "plain_text", "unsupervised"),
        ("fold0/train.parquet", "fold0", "train"),
        ("train_fold_3.parquet", "fold3", "train"),
        ("cv2-valid.parquet", "cv2", "valid"),
        ("train_2.parquet", "default", "train"),
        ("part-00000-1f3c2b-c000.snappy.parquet", "default", ""),
        ("train/part-00001.parquet", "default", "train"),
        ("imagenet-val-000004.tar", "imagenet", "val"),
        ("extra.parquet", "default", "extra"),
    ],
)
def test_paths_say_config_and_split(path, config, split):
    place = locate(PurePath(path))
    assert (place.config, place.split) == (config, split)


def test_a_path_of_two_splits_is_refused():
    with pytest.raises(DataError, match=r"train/val\.parquet: names the splits train and val"):
        locate(PurePath("train/val.parquet"))


def test_configs_are_a_choice():
    assert choose_config(["b", "a"], "a", "x") == "a"
    assert choose_config(["a", "a"], None, "x") == "a"
    with pytest.raises(UsageError, match=r"x: holds 2 configs or folds, which may share images: a, b\. Choose"):
        choose_config(["b", "a"], None, "x")
    with pytest.raises(UsageError, match=r"has no config 'c'\. Configs: a, b"):
        choose_config(["b", "a"], "c", "x")


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["whole"], {"train": "whole"}),
        (["test", "train"], {"train": "train", "test": "test"}),
        (["training", "testing"], {"train": "training", "test": "testing"}),
        (["train", "valid", "extra"], {"train": "train", "validation": "valid"}),
    ],
)
def test_roles(names, roles):
    assert find_roles(names) == roles


def test_a_missing_part_of_a_set_is_noticed(tmp_path):
    files = [tmp_path / f"train-0000{i}-of-00003.parquet" for i in (0, 2)]
    with pytest.raises(DataError, match="train: 2 of 3 files are here"):
        group_files(files, tmp_path, None)


def test_a_set_that_is_there_twice_is_noticed(tmp_path):
    files = [tmp_path / name for name in ("train-0-of-1.parquet", "train-0-of-2.parquet", "train-1-of-2.parquet")]
    with pytest.raises(DataError, match="train: is there as 1 files and as 2 files"):
        group_files(files, tmp_path, None)


def test_numbers_left_out_are_said(tmp_path):
    files = [tmp_path / f"train-{i:06}.tar" for i in (0, 1, 3, 7)]
    assert group_files(files, tmp_path, None)[1] == (
        "Files 'train-' are numbered 0 to 7, but 4 are not here, the first 2.",
    )
    assert group_files(files[:2], tmp_path, None)[1] == ()


def test_files_that_name_no_split_are_pooled_with_a_word(tmp_path):
    files = [tmp_path / name for name in ("2024.parquet", "cats.parquet", "dogs.parquet")]
    splits, notes = group_files(files[1:], tmp_path, None)
    assert list(splits) == ["train"]
    assert notes == ("No file names a split; these are read together as train: cats, dogs.",)
    assert group_files(files[:1], tmp_path, None) == ({"train": files[:1]}, ())
