import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from tests.samples import assert_sound, fill, levels, load, pets, picture, save, write

from tdsm.base.errors import DataError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and a network that is never reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def snapshot(cache, name="owner/pets", commit=COMMIT):
    """Return the folder of a cached data set's files at a commit, made the newest one."""
    home = cache / f"datasets--{name.replace('/', '--')}"
    write(home / "refs" / "main", commit.encode())
    (home / "snapshots" / commit).mkdir(parents=True)
    return home / "snapshots" / commit


def test_an_unreachable_hub_says_the_three_ways_out(cache):
    with pytest.raises(DataError, match="cannot be reached") as caught:
        load("owner/pets")
    assert all(way in str(caught.value) for way in ("parquet:", "folder:", "npz:"))


def test_hub_ids_that_cannot_be():
    with pytest.raises(DataError, match="no hub id"):
        load("/no/such/folder")


@pytest.mark.parametrize("where", [lambda cache: snapshot(cache), lambda cache: cache / "here"], ids=["hub", "here"])
def test_one_layout_means_the_same_here_and_there(cache, where):
    folder = where(cache)
    for split, count in (("train", 30), ("valid", 10)):
        save(folder / "data" / f"{split}-00000-of-00001.parquet", pets(50, count))
    data = load("owner/pets" if "snapshots" in folder.parts else folder)
    assert_sound(data)
    assert len(data.validation) == 10
    assert torch.equal(data.train.images[:, 0, 0, 0].long(), data.train.ids + 50)
    assert "Train is 'train'; validation is 'valid'; test is 20% of 'train', held out by seed 0" in "".join(data.notes)


def test_the_commit_is_noted_and_the_name_kept(cache, capfd):
    save(snapshot(cache) / "train.parquet", pets(0, 30))
    capfd.readouterr()
    data = load("owner/pets")
    assert capfd.readouterr() == ("", "")
    assert data.name == "owner/pets"
    assert data.notes[0] == f"Hub data set owner/pets at commit {COMMIT}."


def test_a_revision_is_chosen(cache):
    save(snapshot(cache, commit="f" * 40) / "train.parquet", pets(0, 30))
    save(snapshot(cache) / "train.parquet", pets(0, 40))
    assert len(load("owner/pets", revision="f" * 40).test) == 6
    assert len(load("owner/pets").test) == 8
    with pytest.raises(UsageError, match="revision is for sources of hub"):
        load("digits", revision="main")


def test_two_configs_are_a_choice(cache):
    for config in ("plain", "noisy"):
        save(snapshot_of(cache) / config / "train.parquet", pets(0, 30))
    with pytest.raises(UsageError, match=r"2 configs or folds.*noisy, plain"):
        load("owner/pets")
    assert "Config 'plain' was chosen of noisy, plain." in load("owner/pets", config="plain").notes


def snapshot_of(cache):
    folder = cache / "datasets--owner--pets" / "snapshots" / COMMIT
    return folder if folder.is_dir() else snapshot(cache)


def test_images_in_a_snapshot_are_links_into_the_cache(cache):
    folder = snapshot(cache)
    fill(folder.parents[1] / "blobs")
    (folder / "train").symlink_to(folder.parents[1] / "blobs")
    write(folder / "README.md", b"about")
    (folder / "test" / "ant").mkdir(parents=True)
    for name in ("ant", "cat2", "cat10"):
        (folder / "test" / name).mkdir(exist_ok=True)
        write(folder.parents[1] / "blobs2" / name, picture(7))
        (folder / "test" / name / "1.png").symlink_to(folder.parents[1] / "blobs2" / name)
    data = load("owner/pets")
    assert_sound(data)
    assert levels(data.test) == [7, 7, 7]


def test_a_snapshot_without_data_says_what_it_holds(cache):
    write(snapshot(cache) / "pets.py", b"print('never run')")
    with pytest.raises(DataError, match=r"no images.*1 \.py.*refs/convert/parquet"):
        load("owner/pets")


def test_every_failure_of_the_hub_is_one_line(cache, monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    for error, message in (
        (ConnectionError("reset"), "cannot be loaded from the hub"),
        (HfHubHTTPError.__new__(HfHubHTTPError), "cannot be loaded from the hub"),
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "it is private"),
        (RevisionNotFoundError.__new__(RevisionNotFoundError), "has no revision 'v9'"),
    ):

        def fail(*args, error=error, **options):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(DataError, match=message):
            load("owner/pets", revision="v9")
