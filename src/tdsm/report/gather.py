"""Collect what a run's report shows: its results, and pictures drawn from its test images."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from tdsm.base import io
from tdsm.base.randomness import generator
from tdsm.base.statistics import confusion_matrix, psnr
from tdsm.base.text import count_of
from tdsm.classification.rows import ROWS
from tdsm.classification.scores import majority_share
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import component_images, decompose
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.figures import charts, pictures
from tdsm.figures.style import Drawing
from tdsm.models.load import FIELD_FOLDER
from tdsm.models.weights import count_parameters
from tdsm.pipeline.field import CURVES
from tdsm.pipeline.findings import read_findings
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.rows import is_right, read_predictions, scored_rows
from tdsm.pipeline.run import Run
from tdsm.pipeline.table import chosen, verdict
from tdsm.report.page import ReportInputs, write_report
from tdsm.study.analysis import compared

SHOWN_IMAGES, SHOWN_TOKENS, EMBEDDED_IMAGES = 8, 8, 1000
Drawn = dict[str, tuple[Figure, str]]


def write_page(run: Run) -> Path:
    """Write the page of a run, with its pictures beside it; return its path."""
    table, quality = scored_rows(run), reconstruction_of(run)
    history = io.read_json(run.path / FIELD_FOLDER / CURVES)
    return write_report(run.path, gather(run, table, history, quality))


def gather(run: Run, table: list[dict], history: list[dict], quality: dict) -> ReportInputs:
    """Return everything the page of a run shows."""
    config, found = run.field.config, read_findings(run)
    environment = io.read_json(run.path / "environment.json")
    right = {row["name"]: is_right(run, row["name"]) for row in chosen(table)}
    return ReportInputs(
        title=f"{run.data.name}: {config.num_tokens} tokens × {config.widths[-1]}",
        verdict=verdict(table, right),
        summary=(_quality_words(quality), quality["sanity"]),
        notes=tuple(run.notes()),
        rows=table,
        tables=tuple(table for facts in found.values() for table in facts["tables"]),
        figures=_pictures(run) | _statistics(run) | _results(run, table) | _found(run, found) | _history(history),
        field={
            "parameters": count_parameters(run.field),
            "tokens": f"{config.num_tokens} × {config.widths[-1]}",
            "decoder width": config.query_dim,
            "test PSNR (dB)": round(quality["psnr"], 2),
            "training images": len(run.data.train),
            "validation images": len(run.data.validation),
            "test images": len(run.data.test),
        },
        config=run.config.model_dump(mode="json"),
        environment=environment | {"reported_on": platform.platform()},
        command=environment["command"],
    )


def _quality_words(quality: dict) -> str:
    return (
        f"The field reconstructs test images at {quality['psnr']:.2f} dB "
        f"(PSNR per image, averaged over {quality['n']} images; standard deviation {quality['deviation']:.2f} dB)."
    )


def _with_caption(drawing: Drawing, *arguments: Any, here: str = "") -> tuple[Figure, str]:
    return drawing(*arguments), f"{drawing.caption} {here}".strip()


def _some(run: Run, count: int) -> Int[Tensor, " images"]:
    """Draw the test images that a picture shows."""
    return stratified_sample(run.data.test.labels, count, generator(run.config.seed, "report"))


def _of_two_classes(labels: Int[Tensor, " images"]) -> list[int]:
    """Choose the first image and the first one of another class."""
    firsts = {label: position for position, label in reversed(list(enumerate(labels.tolist())))}
    return sorted(firsts.values())[:2]


def _draw_of(run: Run, count: int) -> str:
    total = len(run.data.test)
    if count == total:
        return f"all {count_of(total, 'test image')}"
    return f"a stratified draw of {count} of {count_of(total, 'test image')}"


@torch.no_grad()
def _pictures(run: Run) -> Drawn:
    rows = _some(run, SHOWN_IMAGES)
    images, pair = run.data.test.floats(rows).to(run.device), _of_two_classes(run.data.test.labels[rows])
    size = tuple(images.shape[2:])
    tokens = run.field.encode(images)
    shown, reconstruction = rearrange(images, "b c h w -> b h w c"), run.field.decode(tokens, size=size)
    indices = select_tokens(tokens.shape[1], parse_selection(run.config.maps.selection))
    components = component_images(run.field, tokens[pair], size=size, selection=indices)
    maps = components.mean(dim=-1).movedim(1, -1).cpu().numpy()
    both = _unit(shown), _unit(reconstruction), psnr(shown, reconstruction).tolist()
    here = f"Here: {_draw_of(run, len(images))}."
    drawn = {"reconstructions": _with_caption(pictures.reconstructions, *both, here=here)}
    for number, (image, parts) in enumerate(zip(pair, components.cpu().numpy(), strict=True)):
        before, after = _unit(shown[image]), _unit(reconstruction[image])
        drawn[f"components-{number}"] = _with_caption(pictures.component_grid, before, after, parts, indices)
        drawn[f"tdsm-{number}"] = _with_caption(pictures.tdsm_slices, before, maps[number], indices)
    return drawn


@torch.no_grad()
def _methods(run: Run) -> tuple[Figure, str]:
    image = run.data.test.floats(_some(run, SHOWN_IMAGES)[:1]).to(run.device)
    tokens, size = run.field.encode(image), tuple(image.shape[2:])
    indices = list(range(min(SHOWN_TOKENS, tokens.shape[1])))
    methods = compared(run.field)
    parts = [decompose(run.field, tokens, size=size, method=method, selection=indices) for method in methods]
    components = np.stack([part.components[0].mean(dim=-1).cpu().numpy() for part in parts])
    return _with_caption(pictures.methods, _unit(image[0].movedim(0, -1)), components, methods, indices)


def _statistics(run: Run) -> Drawn:
    features, drawn = run.samples(ROWS["tdsm-avg"], "test").features, _some(run, EMBEDDED_IMAGES)
    maps = features[drawn].flatten(1, 2)
    pooled, labels, here = maps.mean(dim=1), run.data.test.labels[drawn].numpy(), f"Here: {_draw_of(run, len(drawn))}"
    deviation = maps.std(dim=1, correction=0).numpy()
    figures = {"token-statistics": _with_caption(charts.token_statistics, pooled.numpy(), deviation, here=f"{here}.")}
    for name, points in {"PCA": _pca(pooled), "t-SNE": _tsne(pooled)}.items():
        if points is not None:
            arguments = points, labels, run.data.test.classes, f"{name} of average-pooled maps"
            unseen = f"{here}; labels were not used to place the points."
            figures[name.lower()] = _with_caption(charts.embedding, *arguments, here=unseen)
    return figures


def _results(run: Run, table: list[dict]) -> Drawn:
    labels, classes = run.data.test.labels, run.data.test.classes
    drawn = {"accuracy": _with_caption(charts.accuracy_bars, table, majority_share(labels))}
    for row in chosen(table):
        predicted = read_predictions(run, row["name"])
        matrix = confusion_matrix(labels.repeat(len(predicted)), predicted.flatten(), len(classes))
        once = f"Every image counts once for each of {len(predicted)} seeds." if len(predicted) > 1 else ""
        figure, caption = _with_caption(charts.confusion, matrix.numpy(), classes, here=once)
        which = f"{row['name']}, the {row['role']} row chosen on validation."
        drawn[f"confusion-{row['role']}"] = figure, f"{which} {caption}"
    return drawn


def _found(run: Run, found: dict[str, dict[str, Any]]) -> Drawn:
    """Draw what was found out beside the table, where it has a picture."""
    drawn = {"methods": _methods(run)} if "analysis" in found else {}
    if "study-tokens" in found:
        *rows, everything = found["study-tokens"]["rows"]
        drawn["token-counts"] = _with_caption(charts.token_counts, rows, everything)
    if "study-regions" in found:
        facts = found["study-regions"]
        changes = {edit: np.array(values) for edit, values in facts["changes"].items()}
        drawn["handles"] = _with_caption(charts.handles, changes, list(facts["ways"]), facts["counts"])
    return drawn


def _history(history: list[dict]) -> Drawn:
    return {"curves": _with_caption(charts.curves, history)} if history else {}


def _unit(values: Float[Tensor, "*image"]) -> Float[np.ndarray, "*image"]:
    return ((values.clamp(-1, 1) + 1) / 2).cpu().numpy()


def _pca(pooled: Tensor) -> np.ndarray | None:
    from sklearn.decomposition import PCA

    return PCA(2, random_state=0).fit_transform(pooled.numpy()) if min(pooled.shape) >= 2 else None


def _tsne(pooled: Tensor) -> np.ndarray | None:
    from sklearn.manifold import TSNE

    if len(pooled) < 10:
        return None
    return TSNE(2, perplexity=min(30, len(pooled) / 4), random_state=0, init="random").fit_transform(pooled.numpy())
