import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm.base.errors import DataError, UsageError
from tdsm.base.randomness import generator
from tdsm.data import DataConfig
from tdsm.data.splits import absent_classes, partition, random_rows, stratified_holdout

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)
FRACTIONS = st.floats(0.01, 0.89)


def labels_of(counts, seed=0):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return labels[torch.randperm(len(labels), generator=generator(seed, "mix"))]


def names(labels):
    return tuple(f"class{i}" for i in range(int(labels.max()) + 1))


def split(labels, seed=0, **options):
    labels = labels if isinstance(labels, dict) else {"train": labels}
    return partition(labels, names(torch.cat(list(labels.values()))), DataConfig(**options), seed)


@given(counts=COUNTS, fraction=FRACTIONS, seed=st.integers(0, 99))
def test_holdout_is_disjoint_complete_and_stratified(counts, fraction, seed):
    labels = labels_of(counts)
    kept, held = stratified_holdout(labels, fraction, generator(seed, "test"))
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    for label, count in enumerate(counts):
        share = int((labels[held] == label).sum())
        assert abs(share - fraction * count) < 1
        assert share < count or count == 0
    if all(count == 0 or count * (1 - fraction) >= 1 for count in counts):
        assert len(held) == round(len(labels) * fraction)


def test_holdout_depends_on_the_seed_alone():
    labels = labels_of([30, 20])
    first, again, other = (stratified_holdout(labels, 0.3, generator(seed, "x"))[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_rows_keep_order_and_limit():
    rows = torch.arange(5, 25)
    kept = random_rows(rows, 6, generator(0, "x"))
    assert len(kept) == 6
    assert set(kept.tolist()) < set(rows.tolist())
    assert kept.tolist() == sorted(kept.tolist())
    assert random_rows(rows, None, generator(0, "x")) is rows


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(5, 40), min_size=2, max_size=6),
    seed=st.integers(0, 99),
    limit=st.integers(20, 100) | st.none(),
)
def test_parts_of_one_split_never_overlap(counts, seed, limit):
    parts, notes = split(labels_of(counts), seed, max_train=limit, validation_fraction=0.25)
    rows = torch.cat([part.rows for part in parts.values()])
    assert len(rows.unique()) == len(rows)
    assert {part.split for part in parts.values()} == {"train"}
    assert "the source has no test split" in notes[0]
    if limit:
        assert len(parts["train"].rows) + len(parts["validation"].rows) <= limit


def test_own_test_split_is_used_whole_and_missing_validation_comes_from_train():
    parts, notes = split({"train": labels_of([50, 50]), "test": labels_of([7, 3])})
    assert (parts["test"].split, len(parts["test"].rows)) == ("test", 10)
    assert (parts["validation"].split, len(parts["validation"].rows)) == ("train", 10)
    assert notes == ["Train is 'train'; validation is 10% of 'train', drawn by seed 0; test is 'test'."]


def test_splits_that_are_there_are_kept():
    parts, notes = split({"Train": labels_of([50, 50]), "dev": labels_of([5, 5]), "Testing": labels_of([7, 3])})
    assert {role: (part.split, len(part.rows)) for role, part in parts.items()} == {
        "train": ("Train", 100),
        "validation": ("dev", 10),
        "test": ("Testing", 10),
    }
    assert notes == ["Train is 'Train'; validation is 'dev'; test is 'Testing'."]


def test_a_validation_split_never_becomes_the_test_set_unasked():
    labels = {"train": labels_of([50, 50]), "val": labels_of([5, 5])}
    parts, notes = split(labels)
    assert parts["validation"].split == "val"
    assert (parts["test"].split, len(parts["test"].rows), len(parts["train"].rows)) == ("train", 20, 80)
    assert notes == [
        "Train is 'train'; validation is 'val'; test is 20% of 'train', held out by seed 0, since the source has no "
        "test split; test_split makes another its test set."
    ]
    parts, notes = split(labels, test_split="val")
    assert parts["test"].split == "val"
    assert parts["validation"].split == "train"
    assert notes == ["Train is 'train'; validation is 10% of 'train', drawn by seed 0; test is 'val'."]
    with pytest.raises(UsageError, match="test_split 'vla' is none of the splits: 'train', 'val'"):
        split(labels, test_split="vla")


def test_splits_of_other_names_are_accounted_for():
    labels = {"train": labels_of([50, 50]), "test": labels_of([5, 5]), "extra": labels_of([4, 4])}
    assert "Split 'extra' (8 images) serves neither as train, validation nor test and is not used." in split(labels)[1]
    labels["hidden"] = torch.full((7,), -1)
    assert "Split 'hidden' (7 images) has no labels and is not used." in split(labels)[1]


def test_images_without_labels_are_split():
    parts, _ = partition({"train": torch.full((50,), -1)}, (), DataConfig(), 0)
    assert [len(part.rows) for part in parts.values()] == [36, 4, 10]


def test_a_note_says_how_many_images_are_left_out():
    labels = {"train": labels_of([30, 30]), "test": labels_of([10, 10])}
    notes = split(labels, max_train=40, max_test=20)[1]
    assert "Of 60 training images 40 are used, drawn at random." in notes
    assert not [note for note in notes if "test images" in note]
    assert "Of 20 test images 5 are used, drawn at random." in split(labels, max_test=5)[1]


def test_the_test_set_does_not_depend_on_max_train():
    labels = labels_of([50, 50])
    assert torch.equal(split(labels)[0]["test"].rows, split(labels, max_train=30)[0]["test"].rows)


def test_a_class_lost_by_chance_is_noted():
    labels = {"train": labels_of([40, 40, 2]), "test": labels_of([5, 5, 5])}
    part = split(labels, validation_fraction=0.05)[0]["validation"]
    lost = absent_classes("validation", labels["train"][part.rows], ("class0", "class1", "class2"))
    assert lost == ["The validation set has no image of 'class2'."]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ({"train": labels_of([])}, {}, "no empty one"),
        ({"train": labels_of([5, 5]), "test": labels_of([])}, {}, r"test \(0 images\)"),
        ({"test": labels_of([5, 5]), "val": labels_of([5, 5])}, {}, "Expected one that is train"),
        ({"train": labels_of([5, 5]), "val": labels_of([5, 5]), "dev": labels_of([5, 5])}, {}, "Both 'val' and 'dev'"),
        ({}, {}, "none"),
        ({"train": labels_of([20])}, {}, "one class"),
        ({"train": labels_of([20, 20]), "test": labels_of([20])}, {}, "test split has no image of 'class1'"),
        ({"train": labels_of([20]), "test": labels_of([20, 20])}, {}, "train split has no image of 'class1'"),
        ({"train": labels_of([20] * 10)}, {"max_train": 9}, "9 training images for 10 classes"),
        ({"train": labels_of([1, 1])}, {}, "too few to hold out"),
        ({"train": labels_of([3, 3])}, {"validation_fraction": 0.01}, "no image to validate on"),
    ],
)
def test_unusable_splits_are_refused(labels, options, message):
    with pytest.raises(DataError, match=message):
        partition(labels, tuple(f"class{i}" for i in range(10)), DataConfig(**options), 0)
