import warnings

import pytest
import torch

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.training.checkpoints import latest_checkpoint, read_checkpoint, save_checkpoint


def trained(steps=3):
    """Return weights and the optimizer that took some steps on them."""
    weights = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weights], lr=0.1)
    for step in range(steps):
        (weights * torch.arange(4.0) * step).sum().backward()
        optimizer.step()
    return weights, optimizer


def checkpoint(path, step):
    weights, optimizer = trained()
    save_checkpoint(path, step, {"model": {"weights": weights}}, optimizer, {"step": step}, {"seed": 1})


def test_the_two_newest_checkpoints_are_kept(tmp_path):
    for step in (2, 9, 10, 100):
        checkpoint(tmp_path, step)
    names = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000100"]
    assert latest_checkpoint(tmp_path).name == "step-00000100"


def truncate(folder):
    (folder / "state.json").write_bytes(b"{")


def flip(folder):
    data = bytearray((folder / "state.json").read_bytes())
    data[3] ^= 1
    (folder / "state.json").write_bytes(bytes(data))


def lose(folder):
    (folder / "state.json").unlink()


def lose_optimizer(folder):
    """With a manifest that does not miss it."""
    io.write_folder(folder, lambda new: io.write_json(new / "state.json", {}))


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, lose, lose_optimizer, lose_manifest])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage):
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_checkpoint(tmp_path).name == "step-00000002"
    damage(tmp_path / "checkpoints" / "step-00000002")
    with pytest.warns(UserWarning, match="Falling back to the checkpoint before it"):
        assert latest_checkpoint(tmp_path).name == "step-00000001"


def test_without_checkpoints_there_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def test_what_is_read_is_what_was_written(tmp_path):
    checkpoint(tmp_path, 7)
    weights, optimizer = trained()
    other = trained(steps=0)[1]
    state, tensors = read_checkpoint(latest_checkpoint(tmp_path), other, {"seed": 1})
    assert state == {"step": 7}
    assert tensors.keys() == {"model"}
    assert torch.equal(tensors["model"]["weights"], weights)
    one, two = (o.state_dict()["state"][0] for o in (optimizer, other))
    assert one.keys() == two.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_rate_and_decay_are_those_of_the_optimizer_at_hand(tmp_path):
    checkpoint(tmp_path, 7)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(4))], lr=0.02, weight_decay=0.5)
    read_checkpoint(latest_checkpoint(tmp_path), other, {"seed": 1})
    assert (other.param_groups[0]["lr"], other.param_groups[0]["weight_decay"]) == (0.02, 0.5)


def test_what_was_made_from_something_else_is_refused(tmp_path):
    checkpoint(tmp_path, 7)
    with pytest.raises(CheckpointError, match="made from something else: seed: 1 -> 2"):
        read_checkpoint(latest_checkpoint(tmp_path), trained()[1], {"seed": 2})
