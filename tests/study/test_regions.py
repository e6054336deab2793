import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.models.adapters.cross_attention import CrossAttentionField
from tdsm.pipeline.findings import read_findings
from tdsm.study.config import RegionStudyConfig
from tdsm.study.regions import WAYS, Effects, Subject, compare_ways, image_subjects, occupancy_change, value_change
from tdsm.study.regions_table import region_facts, region_tables, verdict
from tests.tinyrun import tdsm

POSITIONS = torch.linspace(-1, 1, 8)[:, None]


class Nearest(CrossAttentionField):
    """A field whose values are those of the nearest token: a token holds its place and its value."""

    num_axes, heads, has_query_residual, has_nonlinear_readout = 1, 1, True, True

    def queries(self, coords):
        return torch.cat([coords, torch.ones_like(coords)], -1)

    def project_queries(self, queries):
        return 400 * queries * torch.tensor([2.0, -1.0])

    def project_tokens(self, tokens):
        place, value = tokens.split(1, -1)
        return torch.cat([place, place**2], -1), value.expand(-1, -1, 2)

    def output_projection(self):
        return torch.eye(2), None

    def readout(self, queries, attended):
        return (attended + 0 * queries)[..., :1]


def subject(values=None, positions=POSITIONS):
    """Eight tokens in a row, two halves as regions."""
    values = torch.ones(8, 1) if values is None else values
    coords = torch.linspace(-0.99, 0.99, 64)[:, None]
    halves = torch.stack([coords[:, 0] < 0, coords[:, 0] >= 0], 1)
    return Subject(torch.cat([POSITIONS, values], 1), coords, halves, halves, positions)


def test_where_tokens_stand_apart_every_way_but_chance_takes_hold_of_the_region():
    other = subject(torch.full((8, 1), -1.0))
    effects = compare_ways(Nearest(), [subject(), other], [1, 0], (1, 4), value_change, draws=5)
    assert effects.ways == tuple(WAYS)
    found = dict(zip(effects.ways, effects.selectivity("replace")[0, :, 1].tolist(), strict=True))
    assert all(found[way] == pytest.approx(2.0, abs=0.05) for way in ("additive", "attention", "position"))
    assert all(found[way] == pytest.approx(2.0, abs=0.05) for way in ("additive less rest", "attention less rest"))
    assert abs(found["random"]) < 1.2


def test_dropping_is_decoding_without_and_own_tokens_replace_nothing():
    field, one = Nearest(), subject(torch.rand(8, 1))
    effects = compare_ways(field, [one], [0], (2,), value_change)
    assert effects.changes["replace"][0, 0].max() < 1e-5
    before = field.decode(one.tokens[None], coords=one.coords)
    expected = []
    for region in range(2):
        looked = field.token_heads(one.tokens[None]).weights(field.query_heads(field.queries(one.coords)))[0, 0]
        order = looked[one.own[:, region]].mean(0).argsort(descending=True)
        after = field.decode(one.tokens[None, order[2:]], coords=one.coords)
        cell = one.cells[:, region]
        expected.append([float((after - before)[0, where].square().mean().sqrt()) for where in (cell, ~cell)])
    seen = effects.changes["drop"][0, effects.ways.index("attention"), 0]
    torch.testing.assert_close(seen, torch.tensor(expected).mean(0))


def test_what_has_no_positions_is_not_chosen_by_them():
    effects = compare_ways(Nearest(), [subject(positions=None)], [0], (1,), value_change)
    assert "position" not in effects.ways


def test_occupancy_changes_by_what_is_not_shared():
    before, after = (
        torch.tensor([[1.0, 1.0, -1.0, -1.0, -1.0]])[..., None],
        torch.tensor([[1.0, -1, 1, -1, -1]])[..., None],
    )
    assert occupancy_change(before, after, torch.ones(5, dtype=torch.bool)).item() == pytest.approx(2 / 3)
    assert occupancy_change(before, after, torch.arange(5) > 2).item() == 0


@pytest.mark.parametrize("counts", [(), (0,), (8,)])
def test_counts_that_leave_nothing_are_refused(counts):
    with pytest.raises(UsageError, match="from 1 to 7"):
        compare_ways(Nearest(), [subject()], [0], counts, value_change)


def test_signals_without_a_common_region_are_refused():
    empty = subject()
    empty = Subject(empty.tokens, empty.coords, torch.zeros_like(empty.own), empty.cells)
    with pytest.raises(UsageError, match="shares no region"):
        compare_ways(Nearest(), [subject(positions=None), empty], [1, 0], (1,), value_change)


def effects_of(additive, attention):
    """Two subjects, two ways, one count: what changed inside; nothing did outside."""
    inside = torch.tensor([additive, attention]).T[..., None]
    changes = torch.stack([inside, torch.zeros_like(inside)], -1)
    return Effects(("additive", "attention"), (1,), {"drop": changes, "replace": changes.flip(1)})


def test_the_verdict_follows_the_interval():
    effects = [effects_of([0.50, 0.60, 0.55], [0.20, 0.31, 0.25])]
    assert "additive against attention: better (+30.0 points" not in verdict(effects, "replace")
    assert "additive against attention: better (+29.7 points" in verdict(effects, "drop")
    assert "additive against attention: worse" in verdict(effects, "replace")
    unsure = [effects_of([0.50, 0.60, 0.20], [0.20, 0.31, 0.55])]
    assert "no difference shown" in verdict(unsure, "drop")
    dropped, replaced = region_tables(effects, "Shapes.")
    assert [line[0] for line in dropped.lines] == ["additive", "attention"]
    assert [line[0] for line in replaced.lines] == ["attention", "additive"]
    assert dropped.lines[0][1] == "+55.0"
    facts = region_facts(effects)
    assert facts["differences"]["dropped"]["additive"]["value"] == pytest.approx(0.2967, abs=1e-3)


def test_a_run_is_asked_about_the_fields_of_a_grid(run, capsys):
    config = RegionStudyConfig(images=3, grid=(2, 3))
    subjects = image_subjects(run, config)
    assert len(subjects) == 3
    rows, columns = run.data.test.size
    cells = subjects[0].cells.view(rows, columns, 6)
    assert cells[0, 0].tolist() == [True] + 5 * [False]
    assert cells[-1, -1].tolist() == 5 * [False] + [True]
    assert cells.sum(-1).eq(1).all()
    tdsm("study", "regions", run.path, "--images", "3", "--grid", "2", "3", "--draws", "2")
    assert (run.path / "study-regions.png").read_bytes()[1:4] == b"PNG"
    text = (run.path / "study-regions.md").read_text()
    assert "3 test images; regions: the 2 × 3 fields of a grid" in text
    found = read_findings(run)["study-regions"]
    assert found["counts"] == [1, 2]
    assert set(found["ways"]) == set(WAYS) - {"position"}
