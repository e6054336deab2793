import pytest
import torch
from tests.samples import PETS, assert_sound, load, pets, picture, save, table, write

from tdsm.base.errors import DataError, UsageError
from tdsm.data.load import JPEG_NOTE


def test_parquet_folder(tmp_path):
    save(tmp_path / "data" / "train-00000-of-00002.parquet", pets(0, 25), row_group_size=4)
    save(tmp_path / "data" / "train-00001-of-00002.parquet", pets(25, 15), row_group_size=100)
    save(tmp_path / "data" / "test-00000-of-00001.parquet", pets(100, 10))
    write(tmp_path / ".cache" / "train.parquet", b"hidden")
    data = load(tmp_path)
    assert_sound(data)
    assert data.train.classes == ("cat", "dog")
    assert len(data.test) == 10
    assert data.notes == ("Train is 'train'; validation is 10% of 'train', drawn by seed 0; test is 'test'.",)
    for part in (data.train, data.validation):
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.ids)
    assert torch.equal(data.test.images[:, 0, 0, 0].long(), data.test.ids + 100)


def test_only_kept_images_are_decoded(tmp_path):
    images = [picture(i) for i in range(40)]
    images[17] = b"damaged"
    save(tmp_path / "train.parquet", table(images, [i % 2 for i in range(40)], PETS))
    save(tmp_path / "test.parquet", pets(0, 10))
    with pytest.raises(DataError, match=r"train\.parquet row 17: not an image"):
        load(tmp_path)
    seeds_without = [seed for seed in range(20) if _loads(tmp_path, seed)]
    assert 5 <= len(seeds_without) <= 19


def _loads(path, seed):
    try:
        return bool(load(path, seed, max_train=20))
    except DataError:
        return False


def test_jpeg_is_noted(tmp_path):
    save(tmp_path / "set.parquet", pets(0, 20, "JPEG"))
    assert JPEG_NOTE in load(tmp_path / "set.parquet").notes
    save(tmp_path / "set.parquet", pets(0, 20, "PNG"))
    assert JPEG_NOTE not in load(tmp_path / "set.parquet").notes


def test_parquet_without_metadata(tmp_path):
    import pyarrow as pa

    levels = [picture(i) for i in range(20)]
    save(tmp_path / "set.parquet", pa.table({"raw": levels, "kind": ["b10", "b9"] * 10}))
    assert load(tmp_path).train.classes == ("b9", "b10")


def test_columns_are_chosen_by_name(tmp_path):
    features = {**PETS, "coarse": {"_type": "ClassLabel", "names": ["x", "y", "z"]}}
    built = table([picture(i) for i in range(20)], [i % 2 for i in range(20)], features, coarse=[0, 1, 2, 0] * 5)
    save(tmp_path / "set.parquet", built)
    with pytest.raises(DataError, match=r"2 columns may be the label.*img \(Image\), label \(ClassLabel\), coarse"):
        load(tmp_path)
    assert load(tmp_path, label_column="coarse").train.classes == ("x", "y", "z")
    with pytest.raises(UsageError, match="label_column 'fine' cannot be used"):
        load(tmp_path, label_column="fine")
    with pytest.raises(UsageError, match="image_column 'label' cannot be used"):
        load(tmp_path, image_column="label")


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (table([picture(0)] * 4, [0, 1, -1, 0], PETS), "-1 marks unlabelled"),
        (table([picture(0)] * 4, [0, 1, 2, 0], PETS), "Expected 0 to 1"),
        (table([picture(0)] * 4, [0, 1, None, 0], PETS), "1 labels are missing"),
        (table([picture(0)] * 4, ["a", "b", "a", "b"], PETS), "<U1"),
        (table([None] * 20, [0, 1] * 10, PETS), "no image bytes"),
        (table([{"bytes": None, "path": "/etc/passwd"}] * 20, [0, 1] * 10, PETS), "no image bytes"),
        (table([], [], PETS), "expected|Expected"),
        (table([picture(0)] * 4, [0.5, 1, 0, 1]), "row 0 holds 0.5, expected a whole number"),
        (table([picture(0)] * 4, [0, 1, 0, 1]).drop_columns("img"), "no column may be the image column"),
        (table([], []).replace_schema_metadata({"huggingface": "[broken"}), "cannot be read"),
        (table([], []).replace_schema_metadata({"huggingface": "[1]"}), "cannot be read"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, built, message):
    save(tmp_path / "set.parquet", built)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_files_that_disagree_are_refused(tmp_path):
    save(tmp_path / "train.parquet", pets(0, 20))
    other = {**PETS, "label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    save(tmp_path / "test.parquet", table([picture(0)] * 4, [0, 1] * 2, other))
    with pytest.raises(DataError, match="differ between its files"):
        load(tmp_path)


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_damaged_parquet_is_refused(tmp_path, cut):
    save(tmp_path / "set.parquet", pets(0, 20))
    whole = (tmp_path / "set.parquet").read_bytes()
    write(tmp_path / "set.parquet", whole[:cut])
    with pytest.raises(DataError, match=r"set\.parquet: cannot be read as parquet"):
        load(tmp_path)
