import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm.base.rows import Rows


@given(st.lists(st.integers(0, 4), min_size=1).filter(any), st.lists(st.integers(0, 10**6)))
def test_rows_of_several_tensors_are_those_of_all_joined(lengths, numbers):
    parts = [torch.randn(length, 2, 3).half() for length in lengths]
    rows, whole = Rows(parts), torch.cat(parts)
    chosen = torch.tensor([number % len(whole) for number in numbers], dtype=torch.int64)
    assert (len(rows), rows.shape, rows.nbytes) == (len(whole), tuple(whole.shape), whole.nbytes)
    assert rows[chosen].dtype == torch.float16
    assert torch.equal(rows[chosen], whole[chosen])


def test_a_row_that_is_not_there_is_an_error():
    with pytest.raises(IndexError):
        Rows([torch.zeros(2), torch.zeros(3)])[torch.tensor([5])]


def test_rows_of_expanded_tensors_are_whole():
    grey = torch.arange(4).view(2, 1, 2).expand(-1, 3, -1)
    colour = torch.arange(6).view(1, 3, 2)
    assert torch.equal(Rows([grey, colour])[torch.tensor([2, 1])], torch.stack([colour[0], grey[1]]))
