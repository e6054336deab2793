import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm.base.randomness import generator
from tdsm.data.sampling import stratified_sample

LABELS = st.lists(st.integers(0, 5), max_size=60)


@given(LABELS, st.integers(0, 70), st.integers(0, 9))
def test_every_class_has_its_share_to_within_one(labels, count, seed):
    labels = torch.tensor(labels, dtype=torch.int64)
    kept = stratified_sample(labels, count, generator(seed, "test"))
    assert len(kept) == min(count, len(labels))
    assert torch.equal(kept, kept.unique())  # ascending, none twice
    assert kept.numel() == 0 or 0 <= kept.min() <= kept.max() < len(labels)
    for name in labels.unique():
        due = len(kept) * (labels == name).sum() / len(labels)
        assert abs((labels[kept] == name).sum() - due) < 1


def test_places_left_over_go_to_the_largest_remainders():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 8)  # of 9 places: 3.15, 2.25, 3.6
    assert labels[stratified_sample(labels, 9, generator(0))].bincount().tolist() == [3, 2, 4]


def test_a_set_sorted_by_class_is_seen_in_all_its_classes():
    labels = torch.arange(10).repeat_interleave(100)
    assert labels[stratified_sample(labels, 30, generator(0))].bincount().tolist() == [3] * 10


def test_the_draw_decides_ties_and_samples():
    labels = torch.arange(4).repeat_interleave(25)
    drawn = [stratified_sample(labels, 2, generator(seed)) for seed in range(20)]
    assert torch.equal(drawn[0], stratified_sample(labels, 2, generator(0)))
    assert {tuple(labels[kept].tolist()) for kept in drawn} == {
        (a, b) for a in range(4) for b in range(a + 1, 4)
    }  # each pair of classes has come
    assert len({tuple(kept.tolist()) for kept in drawn}) > 15
