import pytest
import torch

from tdsm.base.errors import CheckpointError, UsageError
from tdsm.models.load import load_field
from tests.conftest import small_field


@pytest.mark.parametrize("inside", [".", "field"])
def test_a_saved_field_or_the_field_of_a_run_is_found(tmp_path, inside):
    field = small_field(torch.float32)
    field.save_pretrained(tmp_path / inside)
    for path in (tmp_path, str(tmp_path)):
        restored = load_field(path)
        assert restored.config == field.config
        tokens = torch.randn(1, 5, 14)
        assert torch.equal(restored.decode(tokens, size=(2, 2)), field.decode(tokens, size=(2, 2)))


def test_head_counts_are_for_published_checkpoints_only(tmp_path):
    small_field(torch.float32).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="knows its head counts"):
        load_field(tmp_path, cross_heads=2)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["nothing", "empty folder"])
def test_what_is_no_field_is_named_with_what_is_expected(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run: no field found. Expected a run folder"):
        load_field(tmp_path / "run")
