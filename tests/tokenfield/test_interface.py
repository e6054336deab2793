import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.tokenfield import TokenField, resolve_points


class Linear(TokenField):
    """The least a model must answer: values q · (mean of the tokens)."""

    has_query_residual, has_nonlinear_readout = True, True

    def queries(self, coords):
        return coords

    def attend(self, queries, tokens):
        return tokens.mean(dim=1, keepdim=True).expand(-1, queries.shape[0], -1)

    def readout(self, queries, attended):
        return (queries * attended).sum(-1, keepdim=True)


def test_decode_is_readout_of_what_was_attended():
    tokens = torch.tensor([[[1.0, 10.0], [3.0, 30.0]]])
    values = Linear().decode(tokens, size=(2, 3))
    expected = [[-2 - 20, -2, -2 + 20], [2 - 20, 2, 2 + 20]]
    assert values.shape == (1, 2, 3, 1)
    assert values[0, ..., 0].tolist() == expected
    assert Linear().decode(tokens, coords=torch.tensor([[0.5, 0.0]])).tolist() == [[[1.0]]]


@pytest.mark.parametrize(
    "call",
    [
        lambda field, x: field.encode(torch.zeros(1, 3, 4, 4)),
        lambda field, x: field.queries(x[0]),
        lambda field, x: field.attend(x[0], x),
        lambda field, x: field.attend_one(x),
        lambda field, x: field.query_heads(x[0]),
        lambda field, x: field.token_heads(x),
        lambda field, x: field.readout(x[0], x[0]),
    ],
    ids=["encode", "queries", "attend", "attend_one", "query_heads", "token_heads", "readout"],
)
def test_every_answer_must_be_given(call):
    with pytest.raises(NotImplementedError):
        call(TokenField(), torch.zeros(1, 2, 2))


def test_a_readout_separates_only_if_its_model_says_so():
    assert TokenField().separable_readout() is None


def test_points_are_a_grid_or_coordinates():
    points, shape = resolve_points(Linear(), (3, 2), None)
    assert (points.shape, shape) == ((6, 2), (3, 2))
    coords = torch.rand(4, 2)
    points, shape = resolve_points(Linear(), None, coords)
    assert torch.equal(points, coords)
    assert shape == (4,)


@pytest.mark.parametrize(
    ("size", "coords", "words"),
    [
        (None, None, "neither was given"),
        ((2, 2), torch.zeros(1, 2), "both was given"),
        ((2, 2, 2), None, "has 3 axes, this field has 2"),
        (None, torch.zeros(4, 3), r"\(4, 3\), expected .*\(points, 2\)"),
    ],
)
def test_points_that_do_not_fit_are_refused(size, coords, words):
    with pytest.raises(UsageError, match=words):
        resolve_points(Linear(), size, coords)
