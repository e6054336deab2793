"""What can be added by a file of its own and one line in a registry, shown: each is added, used, and dropped again.

An `.added(NAME, ENTRY)` below stands for the line; what it adds stands for the file.
"""

import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import tyro
from pydantic import Field, ValidationError
from torch import nn

import tdsm
from tdsm.base.errors import UsageError
from tdsm.classification.config import HeadConfig
from tdsm.classification.heads import Head, make_head
from tdsm.classification.registry import HEADS
from tdsm.cli import verbs
from tdsm.cli.flags import FLAGS
from tdsm.cli.main import parse
from tdsm.data import DataConfig, load_data
from tdsm.data.load import SOURCES
from tdsm.data.toy import load_toy
from tdsm.decomposition import DECOMPOSITIONS, REDUCTIONS, SELECTIONS, STRATEGIES, methods_for
from tdsm.decomposition.definition import loop
from tdsm.decomposition.parts import Method, Options, Parts, reconstruct
from tdsm.decomposition.reduce import Reduction, num_maps
from tdsm.decomposition.strategies import Strategy
from tdsm.features.config import MapConfig
from tdsm.features.kinds import make_maps
from tdsm.study.config import Asked, ObjectiveStudyConfig
from tdsm.training.config import TrainConfig
from tdsm.training.objectives import Objective, check_objectives, training_loss
from tdsm.training.registry import OBJECTIVES
from tests import tinyrun
from tests.conftest import small_field

SIZE = (4, 6)


def refused(model, **entry):
    """Whether settings refuse an entry."""
    try:
        model(**entry)
    except ValidationError:
        return True
    return False


# ---------------------------------------------------------------- a decomposition


@dataclass(frozen=True)
class Kept(Options):
    """How much of the reconstruction is shared out; the rest is the base."""

    kept: float = 1.0


def equal(field, tokens, queries, indices, options):
    """Give every token the same share of the reconstruction."""
    whole = reconstruct(field, tokens, queries)
    shares = options.kept * whole[:, None].expand(-1, tokens.shape[1], -1, -1) / tokens.shape[1]
    return Parts(shares[:, indices], shares.sum(1), (1 - options.kept) * whole, whole)


EQUAL = Method(equal, question="what if all counted alike?", adds_up=True, options=Kept)


def test_a_decomposition(field, tokens):
    with DECOMPOSITIONS.added("equal", EQUAL):
        parts = tdsm.decompose(field, tokens, SIZE, method="equal", selection=[1, 3])
        torch.testing.assert_close(parts.components.sum(1) * 5 / 2, parts.reconstruction)
        assert parts.completeness_error.max() < 1e-12
        assert "equal" in methods_for(field)
        half = tdsm.decompose(field, tokens, SIZE, method="equal", kept=0.5)
        torch.testing.assert_close(half.base, half.reconstruction / 2)
        with pytest.raises(UsageError, match="no option 'keep', perhaps you meant 'kept'; it has kept"):
            tdsm.decompose(field, tokens, SIZE, method="equal", keep=0.5)
        maps = make_maps(field, tokens, MapConfig(method="equal"), SIZE)
        torch.testing.assert_close(maps.sum(-1), field.decode(tokens, SIZE).mean(-1))
    with pytest.raises(UsageError, match="unknown method 'equal'"):
        tdsm.decompose(field, tokens, SIZE, method="equal")
    assert refused(MapConfig, method="equal")


# ---------------------------------------------------------------- a strategy, a reduction, a selection


def backwards(field, tokens, queries, chunk=None):
    """Decode the last token first."""
    return loop(field, tokens.flip(1), queries).flip(1)


def test_a_strategy(field, tokens):
    with STRATEGIES.added("backwards", Strategy(backwards)):
        images = tdsm.component_images(field, tokens, SIZE, strategy="backwards")
        torch.testing.assert_close(images, tdsm.component_images(field, tokens, SIZE))
        maps = make_maps(field, tokens, MapConfig(strategy="backwards"), SIZE)
        torch.testing.assert_close(maps, tdsm.spatial_map(field, tokens, SIZE))
    assert refused(MapConfig, strategy="backwards")


def brightest(components):
    """Keep the largest channel."""
    return components.amax(dim=-1).movedim(1, -1)


def test_a_reduction(field, tokens):
    with REDUCTIONS.added("brightest", Reduction(brightest)):
        expected = tdsm.component_images(field, tokens, SIZE).amax(-1).movedim(1, -1)
        torch.testing.assert_close(tdsm.spatial_map(field, tokens, SIZE, reduction="brightest"), expected)
        pooled = tdsm.pooled_map(field, tokens, SIZE, reduction="brightest", cells=2, chunk=3)
        want = nn.functional.adaptive_avg_pool2d(expected.movedim(-1, 1), 2).movedim(1, -1)
        torch.testing.assert_close(pooled, want)
        torch.testing.assert_close(make_maps(field, tokens, MapConfig(reduction="brightest"), SIZE), expected)
        assert num_maps(5, 3, "brightest") == 5
    assert refused(MapConfig, reduction="brightest")


def last(num_tokens, n):
    """Take the last n tokens."""
    return list(range(num_tokens))[-n:]


def test_a_selection(field, tokens):
    with SELECTIONS.added("last", last):
        assert tdsm.select_tokens(5, "last:2") == [3, 4]
        maps = make_maps(field, tokens, MapConfig(selection="last:2"), SIZE)
        torch.testing.assert_close(maps, tdsm.spatial_map(field, tokens, SIZE)[..., 3:])
    with pytest.raises(UsageError, match=r'selection .last:2.: expected "stride:n", "first:n"'):
        tdsm.select_tokens(5, "last:2")


# ---------------------------------------------------------------- a head


class Centre(Head):
    """Read the maps in the middle."""

    needs_size: ClassVar[bool] = True

    def __init__(self, num_maps, num_classes, size, config):
        super().__init__(num_maps, num_classes, size, config)
        self.row, self.column = size[0] // 2, size[1] // 2
        self.classify = nn.Linear(num_maps, num_classes)

    def forward(self, maps):
        return self.classify(maps[:, self.row, self.column])


def test_a_head():
    with HEADS.added("centre", Centre):
        classifier = tdsm.TDSMClassifier(num_tokens=5, num_classes=3, pool="centre", size=SIZE)
        assert classifier(torch.zeros(2, *SIZE, 5)).shape == (2, 3)
        with pytest.raises(UsageError, match=r"expected \(batch, 4, 6, 5\)"):
            classifier(torch.zeros(2, 3, 3, 5))
        made = make_head(HeadConfig(kind="centre"), 5, 3, SIZE)
        assert tyro.cli(HeadConfig, args=["--kind", "centre"], registry=FLAGS) == made.config
    with pytest.raises(UsageError, match="unknown head 'centre'"):
        tdsm.TDSMClassifier(num_tokens=5, num_classes=3, pool="centre")
    assert refused(HeadConfig, kind="centre")


# ---------------------------------------------------------------- a source


def load_shapes(where, config):
    """The toy images under another name."""
    return load_toy("", config)


def test_a_source():
    with SOURCES.added("shapes", load_shapes):
        mine = load_data(DataConfig(source="shapes:here", max_train=60, max_test=20), seed=0)
    toy = load_data(DataConfig(source="toy", max_train=60, max_test=20), seed=0)
    assert torch.equal(mine.test.images, toy.test.images)
    with pytest.raises(UsageError, match="shapes:here"):
        load_data(DataConfig(source="shapes:here"), seed=0)


# ---------------------------------------------------------------- an objective


def grey(field, images, config, random):
    """Reconstruct the mean colour only."""
    target = images.mean((2, 3))[:, None]
    return (field.decode(field.encode(images), size=SIZE).flatten(1, 2) - target).square().mean()


def test_an_objective():
    field, images = small_field(torch.float32), torch.rand(2, 3, *SIZE)
    with OBJECTIVES.added("grey", Objective(grey, needs={"has_query_residual": True})):
        config = tyro.cli(TrainConfig, args=["--objectives.full", "0", "--objectives.grey", "0.5"], registry=FLAGS)
        assert config.objectives["grey"] == 0.5
        check_objectives(field, config)
        torch.testing.assert_close(training_loss(field, images, config, 0, 0), 0.5 * grey(field, images, config, None))
        with pytest.raises(UsageError, match=r"'grey' needs a field whose has_query_residual is True"):
            check_objectives(small_field(has_query_residual=False), config)
        assert ObjectiveStudyConfig().objectives[-1] == "grey"
    assert refused(TrainConfig, objectives={"grey": 1})
    assert "grey" not in TrainConfig().objectives


# ---------------------------------------------------------------- a study: its settings, its module of the same name


class CountConfig(Asked):
    """How many test images are there?"""

    times: int = Field(1, ge=1, description="How often they are counted.")


def test_a_study_is_its_settings_and_a_module_of_its_name(tmp_path, monkeypatch):
    module = types.ModuleType("tdsm.study.count")
    module.answer = lambda run, config: (run.path / "count.md", f"{config.times * len(run.data.test)} images")
    monkeypatch.setitem(sys.modules, "tdsm.study.count", module)
    question = verbs._question("count", CountConfig)  # what one line in QUESTIONS adds to `tdsm study`
    monkeypatch.setitem(verbs.VERBS, "count", question)
    run = tinyrun.demo(tmp_path / "run")
    path, words = parse(["count", str(run), "--times", "2"]).answer(tinyrun.finished(run))
    assert (path, words) == (run / "count.md", "120 images")
