import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm.base.randomness import derive_seed, generator

purposes = st.tuples(st.integers(), st.one_of(st.integers(), st.text(max_size=3)), st.integers())


@given(purposes, purposes)
def test_seeds_differ_exactly_when_the_purpose_does(first, second):
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)
    assert 0 <= derive_seed(*first) < 2**63


@pytest.mark.parametrize("other", [(0, "a", 12), (0, "a1", 2), (0, "a", "1", 2), (0, "a", 2, 1), (1, "a", 1, 2)])
def test_neighbouring_purposes_do_not_run_together(other):
    assert derive_seed(0, "a", 1, 2) != derive_seed(*other)


def test_a_seed_is_the_same_on_every_machine_and_run():
    assert derive_seed(0, "shuffle", 3) == 1315750948688852283


def test_draws_do_not_depend_on_what_was_drawn_before():
    alone = torch.randn(3, generator=generator(0, "crop", 5))
    torch.randn(7), torch.randn(2, generator=generator(0, "crop", 4))
    assert torch.equal(alone, torch.randn(3, generator=generator(0, "crop", 5)))
