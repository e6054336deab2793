import json

import pytest
from tests.samples import fill, levels, load, write

from tdsm.base.errors import DataError, UsageError


def table(files, labels, kind="csv", column="label"):
    """Write rows of file_name and label as CSV or as JSON lines."""
    rows = list(zip(files, labels, strict=True))
    if kind == "csv":
        return "\n".join([f"file_name,{column}", *(f"{file},{label}" for file, label in rows)]).encode()
    return "\n".join(json.dumps({"file_name": file, column: label}) for file, label in rows).encode()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def by_level(images):
    """Name the class of each grey level."""
    return {level: images.classes[label] for level, label in zip(levels(images), images.labels.tolist(), strict=True)}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("inner", ["", "images"])
def test_labels_beside_the_images_of_each_split(tmp_path, kind, inner):
    for first, split in enumerate(("train", "test")):
        fill(tmp_path / split, classes=(inner,), count=10, first=100 * first)
        files = names(tmp_path / split)
        labels = ["cat" if number % 2 else "bird" for number in range(10)]
        write(tmp_path / split / f"metadata.{kind}", table(files, labels, kind))
    data = load(tmp_path)
    assert data.train.classes == ("bird", "cat")
    assert len(data.test) == 10
    assert data.test.labels.bincount().tolist() == [5, 5]
    assert f"Labels are those of train/metadata.{kind}, test/metadata.{kind}." in data.notes
    seen = by_level(data.test)
    assert [seen[level] for level in sorted(seen)][:2] == ["bird", "cat"]


def test_a_table_above_the_images_names_them_from_where_it_lies(tmp_path):
    fill(tmp_path, classes=("images",), count=20)
    write(tmp_path / "metadata.csv", table(names(tmp_path), [7, 10] * 10))
    assert load(tmp_path).train.classes == ("7", "10")


def test_a_column_is_called_label_or_named(tmp_path):
    fill(tmp_path, classes=("",), count=20)
    write(tmp_path / "metadata.csv", table(names(tmp_path), ["a", "b"] * 10, column="kind"))
    assert not load(tmp_path).has_labels
    assert load(tmp_path, label_column="kind").train.classes == ("a", "b")
    with pytest.raises(UsageError, match="label_column 'colour' cannot be used"):
        load(tmp_path, label_column="colour")


def test_a_column_that_nothing_holds_is_refused(tmp_path):
    fill(tmp_path, count=4)
    with pytest.raises(UsageError, match=r"label_column is for metadata\.csv or metadata\.jsonl beside images"):
        load(tmp_path, label_column="label")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-2], "leave out 2 of 20 images of 'train'"),
        (lambda rows: [*rows, (rows[0][0], "b")], "is labelled 'a' and 'b'"),
        (lambda rows: [(file, "") for file, _ in rows[:1]] + rows[1:], "1 labels are missing"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, change, words):
    fill(tmp_path, classes=("",), count=20)
    rows = list(zip(names(tmp_path), ["a", "b"] * 10, strict=True))
    write(tmp_path / "metadata.jsonl", table(*zip(*change(rows), strict=True), "jsonl").replace(b'""', b"null"))
    with pytest.raises(DataError, match=words):
        load(tmp_path)


def test_a_table_that_is_none_is_refused(tmp_path):
    fill(tmp_path, classes=("",), count=20)
    write(tmp_path / "metadata.jsonl", b"{not json")
    with pytest.raises(DataError, match=r"metadata\.jsonl: cannot be read as a table"):
        load(tmp_path)


def test_a_table_that_is_a_link_leading_outside_is_refused_like_an_image(tmp_path):
    fill(tmp_path / "set", classes=("",), count=20)
    write(tmp_path / "labels.csv", table(names(tmp_path / "set"), ["a", "b"] * 10))
    (tmp_path / "set" / "metadata.csv").symlink_to(tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"metadata\.csv: not a file inside the data folder"):
        load(tmp_path / "set")
    assert load(tmp_path / "set", follow_links=True).train.classes == ("a", "b")


def test_rows_of_several_splits_in_one_table_are_refused(tmp_path):
    fill(tmp_path, classes=("",), count=4)
    write(tmp_path / "metadata.csv", b"file_name,label,split\na.png,x,train\nb.png,y,test\n")
    with pytest.raises(DataError, match="names the splits train, test within one"):
        load(tmp_path)


def test_folders_stand_and_a_table_may_only_say_the_same(tmp_path):
    fill(tmp_path, classes=("ant", "cat"), count=10)
    files = names(tmp_path)
    write(tmp_path / "metadata.csv", table(files, [int("cat" in file) for file in files]))
    assert load(tmp_path).train.classes == ("ant", "cat")
    write(tmp_path / "metadata.csv", table(files, ["x", "y"] * 10))
    with pytest.raises(DataError, match=r"folders and metadata\.csv sort the images differently"):
        load(tmp_path)
    assert load(tmp_path, label_column="label").train.classes == ("x", "y")
