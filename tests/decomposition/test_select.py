import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdsm.base.errors import UsageError
from tdsm.decomposition import SELECTIONS
from tdsm.decomposition.select import parse_selection, select_tokens


@given(st.integers(1, 40), st.integers(1, 50))
def test_selections_follow_their_definition(num_tokens, n):
    everything = list(range(num_tokens))
    assert select_tokens(num_tokens, None) == everything
    assert select_tokens(num_tokens, f"stride:{n}") == everything[::n]
    assert select_tokens(num_tokens, f"first:{n}") == everything[:n]


@given(st.permutations(range(9)), st.integers(1, 9))
def test_indices_keep_their_order(order, count):
    assert select_tokens(9, order[:count]) == order[:count]
    assert select_tokens(9, parse_selection(",".join(map(str, order[:count])))) == order[:count]


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("count", ["", "0", "-1", "1.5", "n", "²", " 2"])
def test_counts_must_be_whole_and_positive(name, count):
    with pytest.raises(UsageError, match='expected "stride:n", "first:n" with n of at least 1'):
        select_tokens(8, f"{name}:{count}")


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ("last:2", "selection 'last:2'"),
        ("", "selection ''"),
        ("all", "selection 'all'"),
        ([], "selection is empty"),
        ([1, 1], "names a token twice"),
        ([0, 8], r"names \[8\], but tokens run from 0 to 7"),
        ([-1], r"names \[-1\]"),
    ],
)
def test_selections_that_do_not_fit_are_refused(selection, words):
    with pytest.raises(UsageError, match=words):
        select_tokens(8, selection)


@pytest.mark.parametrize(
    ("text", "selection"), [("all", None), ("stride:4", "stride:4"), ("3", [3]), ("0,5,7", [0, 5, 7]), ("1,x", "1,x")]
)
def test_command_line_selections(text, selection):
    assert parse_selection(text) == selection
