import pytest
from tests.samples import fill, levels, load


@pytest.fixture
def root(tmp_path):
    """Thirty images in train, six of which are also in test, two of them in val too."""
    fill(tmp_path, ("train",))
    fill(tmp_path, ("val",), classes=("ant", "cat2"), count=1)
    fill(tmp_path, ("test",), count=2)
    return tmp_path


def test_pictures_in_two_sets_are_counted(root):
    data = load(root)
    stay = "stay in both; drop_duplicates leaves them out."
    assert f"6 images of train are in test too, pixel by pixel, and {stay}" in data.notes
    assert f"2 images of validation are in test too, pixel by pixel, and {stay}" in data.notes
    assert f"2 images of train are in validation too, pixel by pixel, and {stay}" in data.notes
    assert len(data.train) == 30


def test_they_are_left_out_of_train_if_asked(root):
    fill(root, ("val",), classes=("cat10", "ant", "cat2"), count=1, first=200)
    data = load(root, drop_duplicates=True)
    assert len(data.train) == 24
    assert not set(levels(data.train)) & set(levels(data.test))
    assert len(data.test) == 6
    assert "6 images of train are in test too, pixel by pixel, and were left out of it." in data.notes
