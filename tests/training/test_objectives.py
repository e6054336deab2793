import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tdsm.base.errors import UsageError
from tdsm.base.randomness import generator
from tdsm.data import DataConfig, load_data
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField
from tdsm.pipeline.field import new_field
from tdsm.tokenfield.coords import grid
from tdsm.training.config import TrainConfig
from tdsm.training.objectives import (
    OBJECTIVES,
    Draws,
    Objective,
    check_objectives,
    draw_sizes,
    full,
    sparse_context,
    training_loss,
)
from tdsm.training.reconstruction import train_field
from tests.conftest import SMALL
from tests.tinyrun import tdsm, tiny, write_yaml

SIZE = (6, 10)


@pytest.fixture(params=list(OBJECTIVES))
def name(request):
    return request.param


def field_for(name: str, **changes: Any) -> NeuralField:
    """Make a small field that an objective suits."""
    return new_field(FieldConfig(**SMALL | {"latents": "learned", "has_masks": name == "mixture"} | changes), 0)


def only(name: str, **changes: Any) -> TrainConfig:
    return TrainConfig(objectives={"full": 0, name: 1}, **changes)


def some_images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, *SIZE) * 2 - 1


def draws(seed, images=4):
    return Draws(generator(seed), images, slice(None))


# ---------------------------------------------------------------- every objective


def test_every_objective_has_a_weight_and_full_alone_counts():
    assert TrainConfig().objectives == {name: float(name == "full") for name in OBJECTIVES}
    assert TrainConfig(objectives={"nested": 2}).objectives == TrainConfig().objectives | {"nested": 2.0}


@pytest.mark.parametrize("queries", [None, 7])
def test_a_loss_is_finite_and_a_function_of_its_generator(name, queries):
    field, images, config = field_for(name), some_images(), only(name, num_queries=queries)
    loss = OBJECTIVES[name].loss(field, images, config, draws(1))
    assert loss.shape == ()
    assert loss.isfinite()
    assert torch.equal(loss, OBJECTIVES[name].loss(field, images, config, draws(1)))
    is_drawn = queries is not None or name not in ("full", "mixture")
    assert torch.equal(loss, OBJECTIVES[name].loss(field, images, config, draws(2))) != is_drawn


def test_gradients_reach_every_weight_that_is_trained(name):
    """A mixture attends to single tokens only, where queries and keys drop out: these are not trained."""
    field = field_for(name)
    OBJECTIVES[name].loss(field, some_images(), only(name), draws(1)).backward()
    got = {n for n, p in field.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got == {n for n, p in field.named_parameters() if p.requires_grad}
    unused = {"decoder_attention.to_q.weight", "decoder_attention.norm.weight", "decoder_attention.norm.bias"}
    frozen = {n for n, p in field.named_parameters() if not p.requires_grad and "latents" not in n}
    assert frozen == (unused if name == "mixture" else set())
    assert all(p.grad.isfinite().all() for p in field.parameters() if p.grad is not None)


@pytest.mark.parametrize("queries", [None, 7])
def test_parts_of_a_batch_add_up_to_it(name, queries):
    field, images, config = field_for(name), some_images(), only(name, num_queries=queries)
    whole = training_loss(field, images, config, 7, 3)
    rows = [slice(0, 1), slice(1, 3), slice(3, 4)]
    parts = [len(images[r]) / 4 * training_loss(field, images[r], config, 7, 3, of=4, rows=r) for r in rows]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_a_loss_falls_in_thirty_steps(name, tmp_path):
    data = load_data(DataConfig(source="digits", max_train=40, max_test=20), 0)
    config = only(name, steps=30, batch_size=16, warmup_steps=3, learning_rate=1e-2, validate_every=5)
    settings = tiny(field__has_masks=name == "mixture", field__fourier_scale=0.5, field__channels=1)
    field = new_field(settings.field, 0)
    history = train_field(field, data, config, 0, tmp_path)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


# ---------------------------------------------------------------- the equations, point by point


def error(field, images, tokens, image, chosen, points):
    """Square the error of one image decoded from some of its tokens, at each of some points."""
    coords = grid(SIZE)[points]
    decoded = field.decode(tokens[image : image + 1, chosen], coords=coords)[0]
    colours = torch.stack([images[image, :, p // SIZE[1], p % SIZE[1]] for p in points])
    return (decoded - colours).square()


@pytest.mark.parametrize("queries", [None, 7, 1000])
def test_full_is_the_mean_squared_error(queries):
    field, images = field_for("full"), some_images()
    tokens = field.encode(images)
    points = torch.randperm(60, generator=generator(1))[:7].tolist() if queries == 7 else range(60)
    expected = torch.stack([error(field, images, tokens, b, list(range(5)), points) for b in range(4)]).mean()
    torch.testing.assert_close(full(field, images, only("full", num_queries=queries), draws(1)), expected)


@pytest.mark.parametrize(("fraction", "kept"), [(0.25, 15), (0.001, 1), (1.0, 60)])
def test_sparse_context_decodes_everything_from_a_share(fraction, kept):
    field, images = field_for("sparse_context"), some_images()
    keep = torch.rand(4, 60, generator=generator(1)).topk(kept).indices
    assert len({frozenset(row) for row in keep.tolist()}) == (1 if kept == 60 else 4)
    tokens = torch.cat([field.encode(images[b : b + 1], keep[b]) for b in range(4)])
    expected = torch.stack([error(field, images, tokens, b, list(range(5)), range(60)) for b in range(4)]).mean()
    actual = sparse_context(field, images, only("sparse_context", context_fraction=fraction), draws(1))
    torch.testing.assert_close(actual, expected)


def test_a_share_is_drawn_between_its_bounds(monkeypatch):
    field, seen = field_for("sparse_context"), []
    whole = field.encode
    monkeypatch.setattr(field, "encode", lambda images, keep: seen.append(keep.shape[1]) or whole(images, keep))
    for seed in range(40):
        sparse_context(field, some_images(1), only("sparse_context", context_fraction=(0.2, 0.5)), draws(seed, 1))
    assert 12 <= min(seen) < 15
    assert 27 < max(seen) <= 30


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", ["uniform", "log_uniform"])
@pytest.mark.parametrize("name", ["token_dropout", "nested"])
def test_subsets_of_tokens_are_decoded_alone(name, sizes, masked):
    """Draws in the order the objective makes them: the tokens' order if it is random, then the sizes."""
    field, images, config = field_for(name, has_masks=masked), some_images(), only(name, subset_sizes=sizes)
    tokens, random = field.encode(images), generator(1)
    order = torch.rand(4, 5, generator=random).argsort(1) if name == "token_dropout" else torch.arange(5).expand(4, 5)
    counts = draw_sizes(torch.rand(4, generator=random), 5, config).tolist()
    assert len(set(counts)) > 1
    errors = [error(field, images, tokens, b, order[b, : counts[b]].tolist(), range(60)) for b in range(4)]
    torch.testing.assert_close(OBJECTIVES[name].loss(field, images, config, draws(1)), torch.stack(errors).mean())


def test_a_mixture_weighs_pictures_of_single_tokens():
    field, images = field_for("mixture"), some_images()
    tokens, queries = field.encode(images), field.queries(grid(SIZE))
    mixed = torch.zeros(4, 60, 3)
    for b in range(4):
        for p in range(60):
            x = torch.stack(
                [queries[p] + field.attend(queries[p : p + 1], tokens[b : b + 1, [k]])[0, 0] for k in range(5)]
            )
            y = x + field.decoder_feedforward(x)
            share = field.to_mask(y).exp() / field.to_mask(y).exp().sum()
            mixed[b, p] = (share * field.to_channels(y)).sum(0)
    expected = (mixed - images.flatten(2).mT).square().mean()
    torch.testing.assert_close(OBJECTIVES["mixture"].loss(field, images, only("mixture"), draws(1)), expected)


def test_sizes_run_from_one_to_all():
    uniform = torch.rand(30000, generator=generator(1))
    drawn = {kind: draw_sizes(uniform, 6, only("nested", subset_sizes=kind)) for kind in ("uniform", "log_uniform")}
    shares = {kind: sizes.bincount(minlength=7)[1:] / 30000 for kind, sizes in drawn.items()}
    assert all(sizes.min() == 1 and sizes.max() == 6 for sizes in drawn.values())
    torch.testing.assert_close(shares["uniform"], torch.full((6,), 1 / 6), rtol=0, atol=0.01)
    expected = torch.tensor([math.log((n + 1) / n) / math.log(7) for n in range(1, 7)])
    torch.testing.assert_close(shares["log_uniform"], expected, rtol=0, atol=0.01)


# ---------------------------------------------------------------- weights


def test_weights_combine_linearly_and_change_no_draw():
    field, images = field_for("mixture"), some_images()
    weights = {"full": 0.5, "sparse_context": 2.0, "token_dropout": 3.0, "nested": 0.25, "mixture": 1.0}
    alone = {name: training_loss(field, images, only(name, num_queries=9), 7, 3) for name in weights if name != "full"}
    alone["full"] = training_loss(field, images, TrainConfig(num_queries=9), 7, 3)
    together = training_loss(field, images, TrainConfig(num_queries=9, objectives=weights), 7, 3)
    torch.testing.assert_close(together, sum(weight * alone[name] for name, weight in weights.items()))


def test_an_objective_of_weight_zero_is_not_computed():
    with OBJECTIVES.added("failing", Objective(lambda *_: pytest.fail("computed"))):
        training_loss(field_for("full"), some_images(), TrainConfig(), 0, 0)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objectives": {"full": 0}}, "every objective has weight 0.*--train.objectives.full"),
        ({"objectives": {"mixture": 1}}, "needs a field whose has_masks is True.*--field.has-masks"),
        ({"objectives": {"sparse_context": 1}, "context_fraction": (0.5, 0.2)}, "the lower bound first"),
        (
            {"objectives": {"full": 1}, "context_fraction": 0.5},
            "no objective that reads it.*--train.objectives.sparse-context 1",
        ),
        ({"context_fraction": 0.5}, "context_fraction is 0.5, but no objective that reads it"),
        ({"subset_sizes": "uniform"}, "no objective that reads it.*--train.objectives.token-dropout 1"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_said(settings, words):
    with pytest.raises(UsageError, match=words):
        check_objectives(field_for("full"), TrainConfig(**settings))


@pytest.mark.parametrize(
    "settings", [{"objectives": {"fuller": 1}}, {"objectives": {"full": -1}}, {"context_fraction": (0.0, 0.5)}], ids=str
)
def test_what_is_no_setting_is_refused(settings):
    with pytest.raises(ValidationError):
        TrainConfig(**settings)


def test_nothing_is_written_before_the_objectives_are_checked(tmp_path, capsys):
    config = write_yaml(tmp_path / "tiny.yaml")
    arguments = ["train", "--config", config, "--run", tmp_path / "run", "--train.objectives.mixture", 1]
    assert tdsm(*arguments) == 2
    assert "--field.has-masks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_flags_set_weights_and_bounds(tmp_path):
    config = write_yaml(tmp_path / "tiny.yaml", train__steps=2)
    flags = ["--train.objectives.full", 0, "--train.objectives.sparse-context", 1, "--train.context-fraction", 0.2, 0.6]
    assert tdsm("train", "--config", config, "--run", tmp_path / "run", *flags) == 0
