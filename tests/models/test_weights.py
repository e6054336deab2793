import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.models import weights
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField
from tdsm.models.weights import load_strictly, parse_config
from tests.conftest import small_field

# ---------------------------------------------------------------- saving, restoring


@pytest.mark.parametrize("changes", [{}, {"latents": "random", "channels": 1, "has_decoder_feedforward": False}])
def test_saving_and_restoring_keeps_every_bit(tmp_path, changes):
    field = small_field(torch.float32, **changes)
    field.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    restored = NeuralField.from_pretrained(tmp_path)
    assert restored.config == field.config
    assert not restored.training
    mine, theirs = field.state_dict(), restored.state_dict()
    assert mine.keys() == theirs.keys() >= {"fourier.matrix", "encoder.0.latents"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [p.requires_grad for p in restored.parameters()] == [p.requires_grad for p in field.parameters()]


def saved(folder):
    small_field(torch.float32).save_pretrained(folder)
    return folder


def edit_weights(folder, change):
    weights = io.read_tensors(folder / "model.safetensors")
    change(weights)
    io.write_tensors(folder / "model.safetensors", weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("fourier.matrix"), "missing: fourier.matrix"),
        (lambda w: w.update(extra=torch.zeros(1), other=torch.zeros(1)), "unexpected: extra, other"),
        (
            lambda w: w.update({"to_channels.bias": torch.zeros(4)}),
            r"of another shape: to_channels.bias \(4,\) instead of \(3,\)",
        ),
        (lambda w: (w.pop("to_channels.bias"), w.update(a=torch.zeros(1))), "missing: to_channels.bias; unexpected: a"),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path, change, words):
    edit_weights(saved(tmp_path), change)
    with pytest.raises(CheckpointError, match=words):
        NeuralField.from_pretrained(tmp_path)


def test_nothing_is_loaded_when_something_does_not_fit(field):
    before = {name: tensor.clone() for name, tensor in field.state_dict().items()}
    state = {name: torch.zeros_like(tensor) for name, tensor in before.items()} | {"extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="extra"):
        load_strictly(field, state, "here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in field.state_dict().items())


DEEP = "[" * 900 + "1" + "]" * 900
DAMAGED = ["{", "[]", "5", "null", "[" * 10**6, f'{{"widths":{DEEP}}}', '{"widht": 3}', '{"widths": []}', "\xff"]


@pytest.mark.parametrize("text", [*DAMAGED, '{"channels": 0}'], ids=lambda text: text[:15])
def test_a_damaged_config_is_a_checkpoint_error(tmp_path, text):
    (saved(tmp_path) / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        NeuralField.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"\xff" * 9 + data[9:]])
def test_damaged_weights_are_a_checkpoint_error(tmp_path, damage):
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as safetensors"):
        NeuralField.from_pretrained(tmp_path)


# ---------------------------------------------------------------- sizes, before anything is built


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"widths": [10**9, 12, 14]},
            "the config says widths = 1000000000, but .* no axis longer than 64",
        ),
        ({"num_latents": 10**12}, "num_latents = 1000000000000"),
        (
            {"feedforward_multiple": 10**9, "channels": 10**9},
            "channels = 1000000000, feedforward_multiple = 10",
        ),
        ({"processor_depth": 10**9}, "processor_depth = 1000000000"),
        ({"widths": [8] * 10**5}, "the config says 100000 blocks"),
        ({"widths": [10, 12, 15]}, r"of another shape: .*to_kv.weight"),
        ({"processor_depth": 3}, "missing: processor.2"),
    ],
    ids=str,
)
def test_a_config_that_the_weights_do_not_bear_out_is_refused_before_it_is_built(tmp_path, monkeypatch, changes, words):
    config = json.loads((saved(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    monkeypatch.setattr(io, "read_tensors", lambda path: pytest.fail("read"))
    with pytest.raises(CheckpointError, match=words) as caught:
        NeuralField.from_pretrained(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_sizes_that_fit_are_built_once(tmp_path, monkeypatch):
    built = []
    original = NeuralField.__init__

    def counted(self, config=None):
        built.append(torch.empty(0).device.type)
        original(self, config)

    saved(tmp_path)
    monkeypatch.setattr(NeuralField, "__init__", counted)
    NeuralField.from_pretrained(tmp_path)
    assert [device for device in built if device != "meta"] == ["cpu"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, value):
    def spoil(state):
        state["to_channels.bias"][1] = value
        state["fourier.matrix"][0, 0] = value

    edit_weights(saved(tmp_path), spoil)
    with pytest.raises(CheckpointError, match=r"not a number in fourier\.matrix, to_channels\.bias\. "):
        NeuralField.from_pretrained(tmp_path)


# ---------------------------------------------------------------- the hub


def test_a_field_of_the_hub_is_had_file_by_file(tmp_path, monkeypatch):
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        return str(tmp_path / name)

    field = saved(tmp_path)
    monkeypatch.setattr(weights, "hf_hub_download", download)
    assert (
        NeuralField.from_pretrained("someone/field", revision="v1").config == NeuralField.from_pretrained(field).config
    )
    assert asked == [("someone/field", name, {"revision": "v1"}) for name in ("config.json", "model.safetensors")]


@pytest.mark.parametrize("error", [OSError("no such repository\nat all"), ValueError("no name of a repository")])
def test_what_the_hub_does_not_have_is_one_line(monkeypatch, error):
    def download(repository, name, **options):
        raise error

    monkeypatch.setattr(weights, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"someone/field: no such folder, and config\.json .*\(no ") as caught:
        NeuralField.from_pretrained("someone/field")
    assert len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------- config


@given(
    st.builds(
        FieldConfig,
        widths=st.lists(st.integers(1, 600), min_size=1, max_size=4).map(tuple),
        num_latents=st.integers(1, 512),
        fourier_scale=st.floats(0.1, 100),
        latents=st.sampled_from(["fixed", "learned", "random"]),
        processor_depth=st.integers(0, 6),
        has_query_residual=st.booleans(),
        has_decoder_feedforward=st.booleans(),
    )
)
def test_config_survives_json(config):
    assert parse_config(json.loads(config.model_dump_json()), "here") == config


def test_an_unknown_or_impossible_setting_is_named():
    with pytest.raises(CheckpointError, match=r"here: not the config of a field\. widht"):
        parse_config(FieldConfig().model_dump() | {"widht": 3}, "here")
    with pytest.raises(ValidationError, match="widht"):
        FieldConfig(widht=3)
    with pytest.raises(ValidationError, match="frozen"):
        FieldConfig().channels = 1
