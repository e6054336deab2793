"""Tell the kinds of shapes apart from what tokens gave to the octants of space, from tokens, and from points.

Orders of tokens mean nothing: each feature is pooled over tokens by mean, largest and least. A ridge classifier reads
it; its strength is chosen on validation shapes, and test shapes are read once. Few shapes are learned from, since four
kinds are easily told apart.
"""

from collections.abc import Sequence

import numpy as np
import torch
from autoencoder import POINTS, ShapeAutoencoder
from jaxtyping import Float
from shapes import Shapes, draw_shapes
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from tdsm import adapters, contributions
from tdsm.base.randomness import generator
from tdsm.base.statistics import wilson_interval
from tdsm.base.text import Table, count_of, percent
from tdsm.tokenfield.coords import grid

COUNTS = {"train": 16, "validation": 64, "test": 200}
STRENGTHS = (1e-2, 1.0, 1e2, 1e4)
SIDE, SEED = 12, 2
MEANINGS = {
    "contributions": "additive, summed over each octant of space, a token's eight numbers",
    "attention": "summed over each octant, a token's eight numbers",
    "tokens": "a token's 64 numbers",
    "points": "a surface point's three numbers",
}


def kinds_table(models: Sequence[ShapeAutoencoder]) -> Table:
    """Fit and test a classifier on every feature, of each trained field, and tabulate means over fields."""
    found = [_accuracies(model) for model in models]
    lines = []
    for name, meaning in MEANINGS.items():
        right = [accuracies[name] for accuracies in found]
        ends = wilson_interval(round(np.mean(right) * COUNTS["test"]), COUNTS["test"])
        lines.append([name, percent(float(np.mean(right))), f"{percent(ends.low)} to {percent(ends.high)}", meaning])
    note = (
        f"Ridge classifier, from {COUNTS['train']} shapes; its strength chosen on {COUNTS['validation']}, read once on "
        f"{COUNTS['test']}; mean over "
        f"{count_of(len(models), 'trained field')}. Interval: Wilson, of the shapes. Everything is pooled "
        "over tokens or points by mean, largest and least."
    )
    return Table(
        "Kinds of shapes",
        ["read from", "accuracy", "95 % interval", "what it is"],
        lines,
        ["read from", "what it is"],
        notes=[note],
    )


def _accuracies(model: ShapeAutoencoder) -> dict[str, float]:
    shapes = {split: draw_shapes(count, generator(SEED, split)) for split, count in COUNTS.items()}
    features = {split: _features(model, some) for split, some in shapes.items()}
    labels = {split: some.kind.numpy() for split, some in shapes.items()}
    found = {}
    for name in MEANINGS:
        x = {split: values[name] for split, values in features.items()}
        fitted = [
            make_pipeline(StandardScaler(), RidgeClassifier(s)).fit(x["train"], labels["train"]) for s in STRENGTHS
        ]
        best = max(fitted, key=lambda one: one.score(x["validation"], labels["validation"]))
        found[name] = best.score(x["test"], labels["test"])
    return found


@torch.no_grad()
def _features(model: ShapeAutoencoder, shapes: Shapes) -> dict[str, Float[np.ndarray, "shapes features"]]:
    surface = shapes.surface(POINTS, generator(SEED, "points"))
    tokens, field = model.decode(model.encode(surface)), adapters.shape_field(model)
    coords = grid((SIDE, SIDE, SIDE))
    octant = ((coords > 0).long() * torch.tensor([4, 2, 1])).sum(1)

    def given(method: str, **options: int) -> Tensor:
        return contributions(field, tokens, coords, octant, method=method, **options).components[..., 0].mT

    values = {
        "contributions": given("additive", points=3),
        "attention": given("attention"),
        "tokens": tokens,
        "points": surface,
    }
    return {name: _pooled(of_each).numpy() for name, of_each in values.items()}


def _pooled(values: Float[Tensor, "shapes rows numbers"]) -> Float[Tensor, "shapes features"]:
    return torch.cat([values.mean(1), values.amax(1), values.amin(1)], 1).double()
