import pytest

from tdsm.base.statistics import Interval
from tdsm.base.text import Table, difference_words, markdown_table


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a|b", "a\\|b"), ("a\\|", "a\\\\\\|"), ("<b>&", "&lt;b&gt;&amp;"), ("a\n\tb", "a b"), ("\udcff", "?")],
    ids=repr,
)
def test_a_cell_cannot_leave_its_place(text, shown):
    assert markdown_table(["x", "y"], [[text, "1"]]).splitlines()[2] == f"| {shown} | 1 |"


def test_a_table_leaves_out_what_it_has_not():
    assert Table("T", ["x"], [["1"]]).markdown() == "### T\n\n| x |\n| --: |\n| 1 |"
    whole = Table("T", ["x"], [["1"]], findings=["A.", "B."], notes=["C.", "D."]).markdown()
    assert whole.split("\n\n") == ["### T", "A. B.", "| x |\n| --: |\n| 1 |", "C. D."]


@pytest.mark.parametrize(
    ("p", "words"), [(0.0004, "< 0.001"), (0.0006, "< 0.001"), (0.03, "= 0.030"), (1.0, "= 1.000")]
)
def test_a_p_is_never_written_as_zero(p, words):
    difference = Interval(0.0, -0.01, 0.02, "paired over images")
    assert difference_words(difference, p) == (f"95 % interval −1.0 to +2.0, paired over images; McNemar p {words}")
