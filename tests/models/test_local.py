import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField
from tdsm.models.local import spread_points
from tdsm.tokenfield.coords import grid

SETTINGS: dict[str, dict] = {
    "one block": {"widths": (96,), "num_latents": 32, "mapping_dim": 32, "fourier_scale": 5.0},
    "grey": {"channels": 1, "widths": (64,), "num_latents": 48, "mapping_dim": 32, "fourier_scale": 5.0},
    "latents narrower than the code": {"widths": (32, 48), "num_latents": 16, "mapping_dim": 32, "fourier_scale": 3.0},
    "latents wider, by odd widths": {"widths": (51, 77), "num_latents": 20, "mapping_dim": 17},
    "heads wider than the code": {
        "widths": (64,),
        "num_latents": 16,
        "mapping_dim": 16,
        "cross_head_dim": 40,
        "fourier_scale": 2.0,
    },
    "heads of odd width": {"widths": (64,), "num_latents": 16, "mapping_dim": 16, "cross_head_dim": 15},
    "no query residual": {"widths": (64,), "num_latents": 16, "mapping_dim": 16, "has_query_residual": False},
    "audio": {"channels": 1, "num_axes": 1, "widths": (64,), "num_latents": 16, "mapping_dim": 16},
    "volume": {"channels": 1, "num_axes": 3, "widths": (96,), "num_latents": 27, "fourier_scale": 2.0},
    "reference scale": {"widths": (256, 384, 512), "num_latents": 256, "mapping_dim": 96, "fourier_scale": 15.0},
}
SIZES = {1: (64,), 2: (24, 24), 3: (8, 8, 8)}


def build(latents="local", **changes) -> NeuralField:
    defaults = {"mapping_dim": 32, "fourier_scale": 4.0, "cross_head_dim": 16, "self_head_dim": 8, "processor_depth": 1}
    torch.manual_seed(0)
    return NeuralField(FieldConfig(latents=latents, **defaults | changes)).eval()


def logits_of(attention, queries, context):
    heads, queries = attention.token_heads(context), attention.query_heads(queries)
    return queries @ heads.keys.mT / queries.shape[-1] ** 0.5


def most_attended(logits, distance):
    """Return how far what each query attends to most lies from it."""
    weights = logits.softmax(dim=-1).mean(1)
    return distance.expand(len(weights), -1, -1).gather(2, weights.argmax(-1, keepdim=True))


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
@torch.no_grad()
def test_attention_starts_as_a_kernel_in_space(changes):
    field = build(**changes)
    coords, points = grid(SIZES[field.num_axes]), spread_points(field.config.num_latents, field.num_axes)
    spacing = 2 / len(points) ** (1 / field.num_axes)
    values = torch.rand(2, len(coords), field.config.channels) * 2 - 1
    context = torch.cat([values, field.fourier(coords).expand(2, -1, -1)], dim=-1)
    for block in field.encoder:
        logits = logits_of(block.cross_attention, block.latents, context)
        assert 1 < logits.max() < 1.2 * field.config.cross_head_dim**0.5
        assert most_attended(logits, torch.cdist(points, coords)).mean() < spacing / 3
    distance, queries = torch.cdist(coords, points), field.queries(coords)
    logits = logits_of(field.decoder_attention, queries, field.encode_points(values, coords))
    assert 1 < logits.max() < 1.2 * field.config.cross_head_dim**0.5
    assert most_attended(logits, distance).mean() < 1.5 * distance.amin(dim=1).mean()


@torch.no_grad()
def test_other_latents_do_not_start_as_one():
    field = build("learned", **SETTINGS["one block"])
    coords, points = grid((24, 24)), spread_points(32, 2)
    context = torch.cat([torch.zeros(1, len(coords), 3), field.fourier(coords)[None]], dim=-1)
    block = field.encoder[0]
    logits = logits_of(block.cross_attention, block.latents, context)
    assert most_attended(logits, torch.cdist(points, coords)).mean() > 0.5


def test_heads_compare_different_frequencies():
    attention = build(**SETTINGS["one block"]).decoder_attention
    heads = attention.to_q.weight.unflatten(0, (attention.heads, -1))
    picked = [frozenset(head.nonzero()[:, 1].tolist()) for head in heads]
    assert len(set(picked)) == attention.heads
    assert all(len(one) == 16 for one in picked)


def test_nothing_else_starts_otherwise_and_weights_fit_either_way(tmp_path):
    local, learned = build(**SETTINGS["one block"]), build("learned", **SETTINGS["one block"])
    differing = {
        name
        for name, value in local.state_dict().items()
        if not torch.equal(value, learned.state_dict()[name])  # and of one shape
    }
    attended = {f"{part}.{name}.weight" for part in LOCAL_PARTS for name in ("to_q", "to_kv")}
    assert differing == attended | {"encoder.0.latents"}
    for part in LOCAL_PARTS:
        values = [field.get_parameter(f"{part}.to_kv.weight").chunk(2)[1] for field in (local, learned)]
        assert torch.equal(*values)
    assert local.encoder[0].latents.requires_grad
    learned.load_state_dict(local.state_dict())
    local.save_pretrained(tmp_path)
    loaded = NeuralField.from_pretrained(tmp_path)
    assert loaded.config == local.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in local.state_dict().items())


LOCAL_PARTS = ("encoder.0.cross_attention", "decoder_attention")


def test_every_weight_that_learns_is_reached_by_gradients():
    field = build(**SETTINGS["one block"])
    field.decode(field.encode(torch.rand(2, 3, 9, 9)), size=(9, 9)).square().mean().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in field.parameters())


@given(count=st.integers(1, 300), axes=st.integers(1, 3))
@example(count=234, axes=1)
def test_points_are_spread(count, axes):
    points = spread_points(count, axes)
    assert points.shape == (count, axes)
    assert points.abs().max() <= 1
    apart = torch.cdist(points, points) + 9 * torch.eye(count)
    assert apart.min() > 0.44 * 2 / count ** (1 / axes)  # 1/√5 on one axis, where the golden ratio is best
