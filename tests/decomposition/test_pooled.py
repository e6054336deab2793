"""Pooled maps are the maps, pooled; and the maps of all tokens are never there."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.decomposition import POOLS, REDUCTIONS, missing_space, pooled_map, spatial_map
from tests.conftest import small_field

POOLED = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}


def pooled_afterwards(field, tokens, size, pool, cells, **options):
    maps = spatial_map(field, tokens, size, **options).movedim(-1, 1)
    return POOLED[pool](maps, (cells, cells)).movedim(1, -1)


def test_every_pool_has_its_reference():
    assert POOLS.keys() == POOLED.keys()


@pytest.mark.parametrize("size", [(8, 8), (13, 9)], ids=str)
@pytest.mark.parametrize("cells", [1, 2, 4, 8])
@pytest.mark.parametrize("pool", POOLED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_it_is_the_map_pooled(field, tokens, reduction, pool, cells, size):
    want = pooled_afterwards(field, tokens, size, pool, cells, reduction=reduction)
    for chunk in (None, 1, 3):
        got = pooled_map(field, tokens, size, pool=pool, cells=cells, reduction=reduction, chunk=chunk)
        assert got.shape == (2, cells, cells, 15 if reduction == "rgb" else 5)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("selection", ["stride:2", "first:2", [4, 1]], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_selecting_is_the_maps_selection(field, tokens, selection, reduction):
    options = {"reduction": reduction, "selection": selection}
    want = pooled_afterwards(field, tokens, (6, 6), "max", 2, **options)
    got = pooled_map(field, tokens, (6, 6), pool="max", cells=2, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("pool", POOLED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_those_of_the_map_pooled(field, tokens, reduction, pool, cells):
    sources = [tokens.requires_grad_(), *field.decoder_feedforward.parameters(), *field.to_channels.parameters()]
    options = {"pool": pool, "cells": cells, "reduction": reduction}
    want, got = (call(field, tokens, (6, 5), **options) for call in (pooled_afterwards, pooled_map))
    grad = torch.randn_like(want)
    for mine, theirs in zip(
        torch.autograd.grad(got, sources, grad), torch.autograd.grad(want, sources, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10 * max(1, float(theirs.abs().max())))


@pytest.mark.parametrize("changes", [{"has_decoder_feedforward": False}, {"has_query_residual": False}], ids=str)
def test_readouts_of_another_form_are_pooled_too(tokens, changes):
    field = small_field(**changes)
    with pytest.warns(SpaceWarning, match=missing_space(field)[:30]):
        want = pooled_afterwards(field, tokens, (6, 6), "max", 2)
    with pytest.warns(SpaceWarning, match=missing_space(field)[:30]):
        got = pooled_map(field, tokens, (6, 6), pool="max", cells=2, chunk=3)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operation returned."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.count = max(self.count, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_map_is_never_there(reduction):
    """A chunk of 4 of the 128 tokens: nothing larger than its maps, or a query's hidden units, is made."""
    field, tokens, size = small_field(torch.float32), torch.randn(2, 64, 14), (32, 32)
    with torch.no_grad(), Largest() as largest:
        pooled_map(field, tokens, size, reduction=reduction, chunk=4)
    hidden = 1024 * 2 * 32
    assert largest.count <= hidden
    whole = 128 * 1024
    assert hidden < whole
    with torch.no_grad(), Largest() as largest:
        spatial_map(field, tokens, size, reduction=reduction, chunk=4)
    assert largest.count >= whole, "the check sees a map that is there"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": "median"}, "unknown pool 'median'"),
        ({"reduction": "max"}, "unknown reduction 'max'"),
        ({"cells": 0}, "0 × 0 cells"),
        ({"cells": 7}, "expected 1 to 6"),
        ({"chunk": -1}, "chunk is -1"),
        ({"selection": [9]}, r"names \[9\]"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(field, tokens, options, words):
    with pytest.raises(UsageError, match=words):
        pooled_map(field, tokens, (6, 8), **options)
