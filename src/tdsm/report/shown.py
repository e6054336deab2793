"""What a run's tokens show: pictures of test images, of what each token decodes to, and where images lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from tdsm.base.randomness import generator
from tdsm.base.statistics import psnr
from tdsm.base.text import count_of, shortened
from tdsm.classification.rows import ROWS
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import DECOMPOSITIONS, decompose
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.figures import charts, pictures
from tdsm.figures.style import ERRORS
from tdsm.figures.tiles import SHARPEST, Gallery, Scale, Tile, in_colour, mosaic, on_scale, signed, sprite, stack
from tdsm.pipeline.rows import read_predictions
from tdsm.pipeline.run import Run
from tdsm.report.blocks import Chart, Flow, Fold, Said, Step, Thumbnails
from tdsm.study.analysis import compared

SHOWN_IMAGES, SHOWN_CLASSES, SHOWN_TOKENS = 8, 3, 10
EMBEDDED_IMAGES, EMBEDDED_CELLS, EMBEDDED_PARTS = 500, 8, 50
STATISTICS_IMAGES = 1000
SPRITE_COLUMNS = 25


def some(run: Run, count: int) -> Int[Tensor, " images"]:
    """Draw the test images that a picture shows."""
    return stratified_sample(run.data.test.labels, count, generator(run.config.seed, "report"))


def draw_of(run: Run, count: int) -> str:
    """Say which of the test images are shown."""
    total = len(run.data.test)
    if count == total:
        return f"all {count_of(total, 'test image')}"
    return f"a stratified draw of {count} of {count_of(total, 'test image')}"


def of_different_classes(labels: Int[Tensor, " images"], count: int) -> list[int]:
    """Choose the first images that differ in class, at most `count`.

    >>> import torch
    >>> of_different_classes(torch.tensor([3, 3, 1, 0]), 2)
    [0, 2]
    """
    firsts = {label: position for position, label in reversed(list(enumerate(labels.tolist())))}
    return sorted(firsts.values())[:count]


def unit(values: Float[Tensor, "*image"]) -> Float[np.ndarray, "*image"]:
    """Turn model values into [0, 1]."""
    return ((values.clamp(-1, 1) + 1) / 2).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Seen:
    """A draw of test images with what the field makes of them; components are decoded no larger than they are shown."""

    run: Run
    methods: tuple[str, ...]  # decompositions to be shown

    @cached_property
    def rows(self) -> Int[Tensor, " images"]:
        """Which test images."""
        return some(self.run, SHOWN_IMAGES)

    @cached_property
    def images(self) -> Float[Tensor, "images channels height width"]:
        """The images."""
        return self.run.data.test.floats(self.rows).to(self.run.device)

    @cached_property
    def tokens(self) -> Float[Tensor, "images tokens width"]:
        """Their tokens."""
        return self.run.field.encode(self.images)

    @cached_property
    def reconstruction(self) -> Float[Tensor, "images height width channels"]:
        """What all tokens together decode to."""
        return self.run.field.decode(self.tokens, size=tuple(self.images.shape[2:]))

    @cached_property
    def indices(self) -> list[int]:
        """The tokens that become maps."""
        return select_tokens(self.tokens.shape[1], parse_selection(self.run.config.maps.selection))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of components."""
        height, width = self.images.shape[2:]
        share = min(1.0, SHARPEST / max(height, width))
        return max(1, round(share * height)), max(1, round(share * width))

    @cached_property
    def pair(self) -> list[int]:
        """Images whose tokens are shown, of different classes."""
        return of_different_classes(self.run.data.test.labels[self.rows], SHOWN_CLASSES)

    @cached_property
    def components(self) -> dict[str, Float[np.ndarray, "pair tokens height width channels"]]:
        """Components of these by every method."""
        tokens = self.tokens[self.pair]
        return {
            method: decompose(self.run.field, tokens, size=self.size, method=method, selection=self.indices)
            .components.cpu()
            .numpy()
            for method in self.methods
        }

    @property
    def whole(self) -> str:
        """The method whose components add up, or the first one."""
        return next((m for m in self.methods if DECOMPOSITIONS[m].adds_up), self.methods[0])

    def order(self, image: int) -> list[int]:
        """Order the tokens of an image of the pair, as they stand in components, by energy, largest first."""
        energy = (self.components[self.whole][image] ** 2).mean(axis=(1, 2, 3))
        return np.argsort(-energy, kind="stable").tolist()

    @property
    def alone(self) -> np.ndarray:
        """Components of each token alone."""
        return self.components[next(m for m in self.methods if DECOMPOSITIONS[m].decodes_alone)]

    def name_of(self, image: int) -> str:
        """Name the true class of an image of the pair."""
        return self.run.data.test.classes[int(self.run.data.test.labels[self.rows[self.pair[image]]])]


def methods_shown(run: Run, *, is_analysed: bool) -> tuple[str, ...]:
    """Name the decompositions to be shown: what was measured, else each token alone and what adds up."""
    names = compared(run.field)
    if is_analysed:
        return names
    return tuple(name for name in names if DECOMPOSITIONS[name].decodes_alone or DECOMPOSITIONS[name].adds_up)


def flow(seen: Seen, reader: str | None) -> Flow:
    """Show the way of one image to its map, and what the row named `reader` takes it for."""
    run, config = seen.run, seen.run.field.config
    height, width = seen.images.shape[2:]
    tokens, first = seen.tokens[seen.pair[0]].cpu().numpy(), _most_varied(seen.alone[0])[:9]
    parts = [in_colour((seen.alone[0][k] + 1) / 2) for k in first]
    count, all_of = len(first), len(seen.indices)
    steps = [
        Step("an image", in_colour(unit(seen.images[seen.pair[0]].movedim(0, -1))), f"{height} × {width} pixels"),
        Step(
            "its tokens",
            on_scale(tokens, signed("tokens", tokens)),
            f"{config.num_tokens} rows of {config.widths[-1]} numbers",
        ),
        Step("decoded one by one", mosaic(parts, 3), f"component images: the {count} of {all_of} that vary most"),
        Step("the map", stack(_maps(seen.alone[0], first)), f"one plane a token, {all_of} in all"),
    ]
    if reader is not None:
        row = seen.rows[seen.pair[0]]
        guess, true = int(read_predictions(run, reader)[0, row]), int(run.data.test.labels[row])
        classes = run.data.test.classes
        verdict = "which is right" if guess == true else f"but it is “{classes[true]}”"
        steps.append(Step("a class", None, f"says {reader}, {verdict}", shortened(classes[guess], 40)))
    return Flow(
        steps,
        "What this run does, on one of its test images: the field's encoder turns the image into tokens; its decoder "
        "paints each token as if it stood alone; averaged over colour and stacked, these pictures are the "
        "token-decoded spatial map (TDSM), from which a head reads the class.",
    )


def reconstructions(seen: Seen) -> Gallery:
    """Show images, their reconstructions and the error."""
    images, decoded = rearrange(seen.images, "b c h w -> b h w c"), seen.reconstruction
    before, after = unit(images), unit(decoded)
    error = np.abs(before - after).mean(axis=-1)
    scale = Scale("absolute error", ERRORS, 0.0, max(float(error.max()), 1 / 255))
    decibels = psnr(images, decoded).tolist()
    return Gallery(
        "Test images, what the field decodes from all their tokens, and the absolute difference, averaged over "
        "colour. Below each its PSNR: higher is better; 6 dB more halve the error. Here: "
        f"{draw_of(seen.run, len(images))}.",
        ["image", "decoded", "error"],
        [f"{value:.1f} dB" for value in decibels],
        [
            [in_colour(image), in_colour(shown), on_scale(wrong, scale)]
            for image, shown, wrong in zip(before, after, error, strict=True)
        ],
        scales=[scale],
    )


def reading(seen: Seen) -> Said:
    """Say what a token's component image is, and how to read the pictures of each method."""
    alone = _words(next(m for m in seen.methods if DECOMPOSITIONS[m].decodes_alone))
    said = [
        f"A token is one of the rows of numbers that the encoder makes of an image. Its component image ({alone}) is "
        f"what the decoder paints when this token is the only one there. Its map ({alone} map) is that picture "
        "averaged over colour, shown less its mean over the picture: red is above, blue below. The maps of all "
        "tokens, stacked, are the TDSM. Each is decoded at full weight, so they do not add up to the image.",
        *(_reads(method) for method in seen.methods if not DECOMPOSITIONS[method].decodes_alone),
    ]
    return Said(said)


def tokens_of(seen: Seen, image: int) -> Gallery:
    """Show what the tokens of most energy show of one image, by every method, side by side."""
    order = seen.order(image)[:SHOWN_TOKENS]
    rows, columns, scales = [], [], []
    for method, components in seen.components.items():
        parts, is_alone = components[image], DECOMPOSITIONS[method].decodes_alone
        planes = parts.mean(axis=-1)
        if is_alone:
            rows.append(method)
            columns.append([in_colour((parts[k] + 1) / 2) for k in order])
            planes = planes - planes.mean(axis=(1, 2), keepdims=True)
        rows.append(f"{method} map" if is_alone else method)
        scales.append(signed(_words(rows[-1]), planes))
        columns.append([on_scale(planes[k], scales[-1]) for k in order])
    total, source = len(seen.indices), seen.pair[image]
    return Gallery(
        f"“{seen.name_of(image)}”: {_how_many(len(order), total)}, the largest {_words(seen.whole)} components (mean "
        "square) first. Every row has its own scale.",
        [_words(row) for row in rows],
        [f"token {seen.indices[k]}" for k in order],
        [list(cell) for cell in zip(*columns, strict=True)],
        references=[
            ("image", in_colour(unit(seen.images[source].movedim(0, -1)))),
            ("decoded", in_colour(unit(seen.reconstruction[source]))),
        ],
        scales=scales,
    )


def every_token(seen: Seen) -> Fold:
    """Show all tokens' component images of one image, up to as many as a picture holds."""
    count = min(len(seen.indices), pictures.MAX_TILES)
    parts = seen.alone[0][:count]
    gallery = Gallery(
        f"“{seen.name_of(0)}”: what each token alone decodes to, x shown as (x + 1) / 2, clipped to [0, 1].",
        [""],
        [str(seen.indices[k]) for k in range(count)],
        [[in_colour((part + 1) / 2)] for part in parts],
    )
    return Fold(f"{_how_many(count, len(seen.indices))}, in order", [gallery])


def prints(seen: Seen) -> dict[str, Figure]:
    """Draw the same for paper, on white."""
    drawn: dict[str, Figure] = {}
    images, decoded = rearrange(seen.images, "b c h w -> b h w c"), seen.reconstruction
    drawn["reconstructions"] = pictures.reconstructions(unit(images), unit(decoded), psnr(images, decoded).tolist())
    for number, image in enumerate(seen.pair):
        before, after, parts = unit(images[image]), unit(decoded[image]), seen.alone[number]
        maps = np.moveaxis(parts.mean(axis=-1), 0, -1)
        drawn[f"components-{number}"] = pictures.component_grid(before, after, parts, seen.indices)
        drawn[f"tdsm-{number}"] = pictures.tdsm_slices(before, maps, seen.indices)
    first = seen.order(0)[:SHOWN_TOKENS]
    planes = np.stack([parts[0][first].mean(axis=-1) for parts in seen.components.values()])
    labels = [seen.indices[k] for k in first]
    drawn["methods"] = pictures.methods(unit(images[seen.pair[0]]), planes, seen.methods, labels)
    return drawn


def statistics(run: Run) -> Chart:
    """Show level and spatial variation of every token's map."""
    drawn = some(run, STATISTICS_IMAGES)
    maps = run.samples(ROWS["tdsm-avg"], "test").features[drawn].flatten(1, 2)
    mean, deviation = maps.mean(dim=1).numpy(), maps.std(dim=1, correction=0).numpy()
    here = f"Here: {draw_of(run, len(drawn))}."
    return Chart(
        "token-statistics",
        charts.token_statistics(mean, deviation),
        f"{charts.token_statistics.caption} {here}",
    )


def embeddings(run: Run) -> list[Chart]:
    """Show where test images lie by their maps, with the images themselves on demand."""
    drawn = some(run, EMBEDDED_IMAGES)
    labels, classes = run.data.test.labels[drawn].numpy(), run.data.test.classes
    order = np.argsort(labels, kind="stable")
    vectors = _vectors(run.samples(ROWS["tdsm-avg"], "test").features[drawn])
    shown = unit(rearrange(run.data.test.floats(drawn[order]), "b c h w -> b h w c"))
    words = [classes[label] for label in labels[order]]
    picture = sprite([in_colour(image) for image in shown], SPRITE_COLUMNS)
    thumbnails = Thumbnails(picture, 32, SPRITE_COLUMNS, words)
    here = f"Here: {draw_of(run, len(drawn))}; labels were not used to place the points. Point at one to see its image."
    made: list[Chart] = []
    for name, points in {"PCA": pca(vectors), "t-SNE": tsne(vectors)}.items():
        if points is not None:
            figure = charts.embedding(points, labels, classes, f"{name} of the maps")
            caption = f"The same images by {name}." if made else f"{charts.embedding.caption} {here}"
            made.append(Chart(name.lower(), figure, caption, thumbnails))
    return made


def pca(vectors: Float[np.ndarray, "images width"]) -> Float[np.ndarray, "images 2"] | None:
    """Project on the first two principal components, if there are two."""
    return vectors[:, :2] if min(vectors.shape) >= 2 else None


def tsne(vectors: Float[np.ndarray, "images width"]) -> Float[np.ndarray, "images 2"] | None:
    """Embed in two dimensions, if there are ten images."""
    from sklearn.manifold import TSNE

    if len(vectors) < 10:
        return None
    perplexity = min(30, len(vectors) / 4)
    return TSNE(2, perplexity=perplexity, random_state=0, init="random").fit_transform(vectors)


def _vectors(maps: Float[Tensor, "images height width maps"]) -> Float[np.ndarray, "images parts"]:
    """Return principal components of maps, averaged in 8 × 8 cells, every map on its own scale."""
    from sklearn.decomposition import PCA

    cells = min(EMBEDDED_CELLS, maps.shape[1]), min(EMBEDDED_CELLS, maps.shape[2])
    pooled = F.adaptive_avg_pool2d(rearrange(maps.float(), "b h w k -> b k h w"), cells)
    mean = reduce(pooled, "b k h w -> k 1 1", "mean")
    scale = reduce((pooled - mean).square(), "b k h w -> k 1 1", "mean").sqrt().clamp(min=1e-6)
    flat = ((pooled - mean) / scale).flatten(1).numpy()
    return PCA(min(EMBEDDED_PARTS, *flat.shape), random_state=0).fit_transform(flat)


def _maps(parts: np.ndarray, which: Sequence[int]) -> list[Tile]:
    planes = parts.mean(axis=-1)
    planes = planes - planes.mean(axis=(1, 2), keepdims=True)
    scale = signed("map", planes)
    return [on_scale(planes[k], scale) for k in which]


def _words(method: str) -> str:
    return method.replace("_", " ")


def _most_varied(parts: np.ndarray) -> list[int]:
    """Order components by how much they vary over space, most first."""
    return np.argsort(-parts.var(axis=(1, 2)).mean(axis=-1), kind="stable").tolist()


def _reads(method: str) -> str:
    question: Any = DECOMPOSITIONS[method].question
    sums = " With what the decoder paints of no token, these add up to the decoded image, exactly."
    return f"{_words(method).capitalize()}: {question}{sums * DECOMPOSITIONS[method].adds_up}"


def _how_many(count: int, total: int) -> str:
    return f"{count} of {count_of(total, 'token')}" if count < total else f"all {count_of(total, 'token')}"
