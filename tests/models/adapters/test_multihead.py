import pytest
import torch
from torch import nn

from tdsm.base.errors import UsageError
from tdsm.decomposition import decompose
from tdsm.decomposition.solo import missing_space
from tdsm.models.adapters.multihead import MultiheadField
from tdsm.tokenfield.coords import FourierFeatures, grid

SIZE = (6, 5)


class ResidualReadout(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 3))

    def forward(self, queries, attended):
        return self.layers(queries + attended)


def field_of(**options):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, **options).eval()
    token_dim = attention.kdim
    nn.init.normal_(attention.out_proj.weight)
    if attention.in_proj_bias is not None:
        nn.init.normal_(attention.in_proj_bias)
    return MultiheadField(
        attention,
        nn.Sequential(nn.Flatten(2), nn.Linear(16, token_dim)),
        FourierFeatures(2, 4, 2.0),
        ResidualReadout(),
        has_query_residual=True,
        has_nonlinear_readout=True,
        query_norm=nn.LayerNorm(8),
        token_norm=nn.LayerNorm(token_dim),
    ).eval()


@pytest.fixture(params=["packed", "batch first", "own widths", "no bias"])
def field(request):
    options = {"batch first": {"batch_first": True}, "own widths": {"kdim": 12, "vdim": 12}, "no bias": {"bias": False}}
    return field_of(**options.get(request.param, {}))


@torch.no_grad()
def test_decodes_what_torch_does(field):
    tokens = field.encode(torch.randn(2, 5, 4, 4))
    queries = field.queries(grid(SIZE))
    q, z = field.query_norm(queries).expand(2, -1, -1), field.token_norm(tokens)
    if field.attention.batch_first:
        attended = field.attention(q, z, z)[0]
    else:
        attended = field.attention(q.mT.movedim(-1, 0), z.mT.movedim(-1, 0), z.mT.movedim(-1, 0))[0].movedim(0, 1)
    decoded = field.decode(tokens, SIZE).flatten(1, 2)
    torch.testing.assert_close(decoded, field.read(queries, attended), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_battery(field, check_field):
    check_field(field, field.encode(torch.randn(2, 5, 4, 4)), SIZE)


@torch.no_grad()
def test_attention_maps_are_those_of_torch():
    field = field_of(batch_first=True)
    tokens = field.encode(torch.randn(2, 5, 4, 4))
    q, z = field.query_norm(field.queries(grid(SIZE))).expand(2, -1, -1), field.token_norm(tokens)
    for head in (None, 0, 1):
        weights = field.attention(q, z, z, average_attn_weights=head is None)[1]
        expected = weights if head is None else weights[:, head]
        maps = decompose(field, tokens, SIZE, method="attention", head=head).components
        torch.testing.assert_close(maps[..., 0].flatten(2), expected.mT, rtol=1e-5, atol=1e-6)


def test_a_residual_and_a_nonlinear_readout_carry_space():
    assert missing_space(field_of()) is None


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_keys_that_are_no_tokens_are_refused(option):
    with pytest.raises(UsageError, match=option):
        field_of(**{option: True})


def test_another_attention_is_refused():
    with pytest.raises(UsageError, match="MultiheadAttention"):
        MultiheadField(nn.Linear(2, 2), abs, abs, nn.Identity(), has_query_residual=True, has_nonlinear_readout=True)


def test_a_wrapped_model_says_how_it_is_saved(tmp_path):
    with pytest.raises(UsageError, match=r"MultiheadField wraps a model .* wrap it again .* field\.state_dict\(\)"):
        field_of().save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())
