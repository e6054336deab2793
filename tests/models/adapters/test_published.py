import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tdsm
from tdsm.base import io
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.decomposition import STRATEGIES, component_images
from tests import reference

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.fixture(scope="module")
def published():
    return torch.load(FIXTURES / "checkpoint_small.pt", weights_only=True)


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURES / "checkpoint_small_io.safetensors")


@pytest.fixture(scope="module")
def field():
    return tdsm.load_field(FIXTURES / "checkpoint_small.pt")


def close(seen, expected):
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- equal number for number


def test_sizes_are_read_off_the_weights(field):
    config = field.config
    assert (config.widths, config.num_latents, config.mapping_dim) == ((16, 24, 32), 8, 8)
    assert (config.cross_head_dim, config.self_head_dim, config.processor_depth) == (8, 4, 4)
    assert (config.channels, config.num_axes, config.feedforward_multiple) == (3, 2, 4)
    assert not field.training


@torch.no_grad()
def test_tokens_and_reconstruction_agree(field, expected):
    close(field.encode(expected["images"]), expected["latents"])
    close(field.decode(expected["latents"], size=(32, 32)).flatten(1, 2), expected["reconstruction"])


@torch.no_grad()
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_component_images_agree(field, expected, strategy):
    tokens = field.encode(expected["images"])
    close(component_images(field, tokens, size=(32, 32), strategy=strategy), expected["component_images"])
    token3 = component_images(field, tokens, size=(48, 40), selection=[3], strategy=strategy)
    close(token3[:, 0], expected["token3_48x40"])


def test_the_numpy_reference_agrees(field, expected):
    state, config = reference.arrays(field), field.config
    image = expected["images"][0].double().numpy()
    tokens = reference.encode(state, config, image)
    np.testing.assert_allclose(tokens, expected["latents"][0], rtol=0, atol=1e-5)
    components = reference.decompose(state, config, tokens, reference.grid((32, 32)))
    np.testing.assert_allclose(components.reshape(8, 32, 32, 3), expected["component_images"][0], rtol=0, atol=1e-5)


def test_saved_again_it_is_the_same_field(field, tmp_path):
    field.save_pretrained(tmp_path)
    again = tdsm.load_field(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(field.state_dict().values(), again.state_dict().values(), strict=True))


# ---------------------------------------------------------------- whatever is wrong is named


@pytest.fixture
def load_edited(published, tmp_path):
    def load(change, **heads):
        checkpoint = copy.deepcopy(published)
        change(checkpoint["model_state_dict"], checkpoint)
        torch.save(checkpoint, tmp_path / "edited.pt")
        return tdsm.load_field(tmp_path / "edited.pt", **heads)

    return load


@pytest.mark.parametrize(
    "unused", [["projection_matrix"], ["projection_matrix", "input_proj.0.weight", "input_proj.2.bias"]]
)
def test_unused_weights_may_be_missing(load_edited, field, unused):
    again = load_edited(lambda weights, _: [weights.pop(name) for name in unused])
    assert torch.equal(again.fourier.matrix, field.fourier.matrix)


def test_a_decoder_without_feedforward_is_recognised(load_edited):
    def drop(weights, _):
        for name in [name for name in weights if name.startswith("decoder_ff.")]:
            weights.pop(name)

    assert not load_edited(drop).has_nonlinear_readout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w, _: w.pop("decoder_cross_attn.norm.bias"), r"missing: decoder_attention\.norm\.bias"),
        (lambda w, _: w.pop("encoder_blocks.1.residual_proj.weight"), r"missing: encoder\.1\.project\.weight"),
        (lambda w, _: w.pop("to_logits.weight"), r"'to_channels\.weight' is missing"),
        (lambda w, _: w.pop("encoder_blocks.0.latents"), "missing"),
        (lambda w, _: w.pop("encoder_blocks.1.latents"), "missing"),
        (lambda w, _: w.pop("self_attn_blocks.1.0.fn.to_q.weight"), r"missing: processor\.1\.self_attention\.to_q"),
        (lambda w, _: w.update(stranger=torch.zeros(2)), "unexpected: stranger"),
        (lambda w, _: w.update({"input_projection.0": torch.zeros(2)}), "unexpected: input_projection.0"),
        (
            lambda w, _: w.update({"encoder_blocks.2.ff.norm.bias": torch.zeros(5)}),
            r"of another shape: encoder\.2\.feedforward\.norm\.bias \(5,\) instead of \(32,\)",
        ),
        (
            lambda w, _: w.update({"encoder_blocks.1.latents": torch.zeros(4, 24)}),
            r"\[8, 4, 8\] latents, expected equal counts",
        ),
        (lambda w, _: w.update({"encoder_blocks.0.latents": torch.zeros(8)}), r"encoder\.0\.latents"),
        (lambda w, _: w.update({"encoder_blocks.0.latents": 3}), r"encoder_blocks\.0\.latents"),
        (lambda w, _: w.update({"to_logits.weight": torch.zeros(0, 16)}), "to_channels"),
        (lambda _, c: c.pop("model_state_dict"), r"'to_channels\.weight' is missing"),
        (lambda _, c: c.pop("fourier_encoder_state_dict"), "'fourier_encoder_state_dict' with B .* saw 0 among: epoch"),
        (lambda _, c: c["fourier_encoder_state_dict"].pop("B"), "saw 0 among: epoch, model_state_dict"),
        (lambda w, c: c.update(other=dict(w)), "holds 2 copies of the weights, below 'model_state_dict.', 'other.'"),
        (lambda _, c: c["fourier_encoder_state_dict"].update(A=torch.zeros(1)), "should hold exactly 'B', saw B, A"),
        (lambda _, c: c["fourier_encoder_state_dict"].update(B=torch.zeros(8)), r"fourier\.matrix"),
        (lambda _, c: c["fourier_encoder_state_dict"].update(B=torch.zeros(2, 9)), "of another shape"),
    ],
)
def test_weights_that_do_not_fit_are_listed(load_edited, change, words):
    with pytest.raises(CheckpointError, match=words):
        load_edited(change)


# ---------------------------------------------------------------- names as wrappers and averages leave them


def same(field, other):
    return all(torch.equal(a, b) for a, b in zip(field.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_words_before_the_names_are_passed_over_and_said(published, field, tmp_path, prefix, ending):
    weights = {prefix + name: tensor for name, tensor in published["model_state_dict"].items()}
    file = tmp_path / f"wrapped{ending}"
    if ending == ".pt":
        torch.save({**published, "model_state_dict": weights}, file)
    else:
        io.write_tensors(
            file, weights | {"B" if prefix == "model." else "fourier.B": published["fourier_encoder_state_dict"]["B"]}
        )
    with pytest.warns(UserWarning, match=rf"weights below '.*{prefix}' are taken\."):
        assert same(tdsm.load_field(file), field)


def test_of_an_average_and_what_was_averaged_the_average_is_taken_and_said(published, field, tmp_path):
    last = {name: tensor + 1 for name, tensor in published["model_state_dict"].items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}}
    ema = published["model_state_dict"]
    torch.save(
        {**published, "model_state_dict": last, "ema_state_dict": ema, "optimizer": optimizer}, tmp_path / "a.pt"
    )
    with pytest.warns(UserWarning, match="below 'ema_state_dict.' are taken, not those below 'model_state_dict.'"):
        assert same(tdsm.load_field(tmp_path / "a.pt"), field)


def test_weights_alone_are_read(field, tmp_path):
    io.write_tensors(tmp_path / "weights.safetensors", field.state_dict())
    assert same(tdsm.load_field(tmp_path / "weights.safetensors"), field)
    io.write_tensors(tmp_path / "half.safetensors", {k: t.half() for k, t in field.state_dict().items()})
    assert tdsm.load_field(tmp_path / "half.safetensors").fourier.matrix.dtype == torch.float32
    field.save_pretrained(tmp_path / "saved")
    assert same(tdsm.load_field(tmp_path / "saved" / "model.safetensors"), field)
    io.write_tensors(
        tmp_path / "saved" / "model.safetensors", {f"module.{k}": t for k, t in field.state_dict().items()}
    )
    with pytest.warns(UserWarning, match="below 'module.' are taken"):
        assert same(tdsm.load_field(tmp_path / "saved"), field)


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"cross_heads": 3}, "has 32 rows, which cross_heads=3 does not divide"),
        ({"self_heads": 5}, "has 32 rows, which self_heads=5 does not divide"),
        ({"cross_heads": 0}, "cross_heads=0"),
        ({"self_heads": -8}, "self_heads=-8"),
    ],
)
def test_head_counts_must_divide(heads, words):
    with pytest.raises(UsageError, match=words):
        tdsm.load_field(FIXTURES / "checkpoint_small.pt", **heads)


def test_other_head_counts_give_another_field(expected):
    other = tdsm.load_field(FIXTURES / "checkpoint_small.pt", cross_heads=2)
    assert not torch.allclose(other.encode(expected["images"]), expected["latents"], atol=1e-2)


@pytest.mark.parametrize(
    "data",
    [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100), pickle.dumps([1, 2], 2), pickle.dumps({"a": 1}, 2)],
    ids=["empty", "text", "zip", "list", "other table"],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, data):
    (tmp_path / "some.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"some\.pt"):
        tdsm.load_field(tmp_path / "some.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_checkpoints_are_refused(tmp_path, kept):
    data = (FIXTURES / "checkpoint_small.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        tdsm.load_field(tmp_path / "cut.pt")


class Payload:
    """Pickled, it creates a file wherever it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_code_in_a_checkpoint_is_refused_and_never_runs(published, tmp_path, save):
    trap, file = tmp_path / "executed", tmp_path / "payload.pt"
    save({**published, "epoch": Payload(trap)}, file)
    with pytest.raises(CheckpointError, match="tensors only"):
        tdsm.load_field(file)
    assert not trap.exists()
    torch.load(file, weights_only=False) if save is torch.save else pickle.loads(file.read_bytes())
    assert trap.exists(), "the payload is a real one: loaded without care it runs"


def test_a_tensor_of_any_size_made_of_one_number_is_refused(published, tmp_path):
    edited = copy.deepcopy(published)
    edited["model_state_dict"]["to_logits.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(edited, tmp_path / "hollow.pt")
    with pytest.raises(CheckpointError, match=r"larger than what is stored of them: to_logits\.weight"):
        tdsm.load_field(tmp_path / "hollow.pt")
