import sys

import datasets
import pytest
from tests.samples import assert_sound, levels, load, picture, write

from tdsm.base.errors import DataError, ResourceError, UsageError
from tdsm.data import DataConfig, load_data


@pytest.fixture
def made():
    """Forty pictures of cats and dogs, the level being the row."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [{"bytes": picture(i), "path": None} for i in range(40)], "label": [i % 2 for i in range(40)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_saved_data_set(tmp_path, made, capfd):
    made.save_to_disk(tmp_path / "one")
    capfd.readouterr()
    data = load(tmp_path / "one")
    assert capfd.readouterr() == ("", "")
    assert_sound(data)
    assert data.name == "one"
    assert data.train.classes == ("cat", "dog")
    assert levels(data.train) == data.train.ids.tolist()


def test_saved_splits_are_kept(tmp_path, made):
    splits = {"train": made, "validation": made.select(range(10, 20)), "extra": made.select(range(4))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "many")
    data = load(tmp_path / "many")
    assert levels(data.validation) == list(range(10, 20))
    assert any("Split 'extra' (4 images)" in note for note in data.notes)


def test_a_data_set_passed_in_python(made):
    data = load_data(DataConfig(), 0, dataset=made.shuffle(seed=1).filter(lambda row: True))
    assert_sound(data)
    assert data.name == "dataset"
    assert [level % 2 for level in levels(data.test)] == data.test.labels.tolist()
    held = datasets.DatasetDict({"train": made, "test": made.select([5, 6])})
    assert levels(load_data(DataConfig(), 0, dataset=held).test) == [5, 6]


@pytest.mark.parametrize("odd", [7, {"train": [1, 2]}, "train"])
def test_other_objects_are_refused(odd):
    with pytest.raises(UsageError, match="expected a Dataset or DatasetDict"):
        load_data(DataConfig(), 0, dataset=odd)


def test_a_damaged_folder_is_refused(tmp_path, made):
    made.save_to_disk(tmp_path)
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        before = (tmp_path / name).read_bytes()
        for damage in (b"", b"[]", b"[1", b"\xff", b'{"_data_files": 3, "features": 3}', before[: len(before) // 2]):
            write(tmp_path / name, damage)
            with pytest.raises(DataError):
                load(f"disk:{tmp_path}")
        write(tmp_path / name, before)


def test_the_package_is_needed_for_these_folders_alone(tmp_path, made, monkeypatch):
    made.save_to_disk(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResourceError, match="pip install datasets"):
        load(tmp_path)
    assert len(load("digits").train) == 1294
