"""Collect what a run's report shows: its results, and pictures drawn from its test images."""

import platform
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from tdsm.base import io
from tdsm.base.statistics import confusion_matrix, psnr
from tdsm.classification.rows import ROWS
from tdsm.decomposition import component_images, decompose
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.figures import pictures as figures
from tdsm.figures.pictures import CAPTIONS
from tdsm.models.load import FIELD_FOLDER
from tdsm.models.weights import count_parameters
from tdsm.pipeline.field import CURVES
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.rows import read_predictions, scored_rows
from tdsm.pipeline.run import Run
from tdsm.pipeline.table import best, verdict
from tdsm.report.page import ReportInputs, write_report
from tdsm.study.analysis import analysis_cells, compared, explanations, read_analysis

SHOWN_IMAGES, SHOWN_TOKENS, EMBEDDED_IMAGES = 8, 8, 1000


def write_page(run: Run) -> Path:
    """Write the page of a run, with its pictures beside it; return its path."""
    table, quality = scored_rows(run), reconstruction_of(run)
    history = io.read_json(run.path / FIELD_FOLDER / CURVES)
    return write_report(run.path, gather(run, table, history, quality))


def gather(run: Run, table: list[dict], history: list[dict], quality: dict) -> ReportInputs:
    """Return everything the page of a run shows."""
    config, analysis = run.field.config, read_analysis(run.path)
    drawn = {**_pictures(run), **_statistics(run), **_results(run, table)}
    if analysis is not None:
        drawn["methods"] = (_methods(run), CAPTIONS["methods"])
    if history:
        drawn["curves"] = (figures.curves(history), CAPTIONS["curves"])
    return ReportInputs(
        title=f"{run.data.name}: {config.num_tokens} tokens × {config.widths[-1]}",
        summary=(verdict(table), _quality_words(quality)),
        notes=tuple(run.notes()),
        rows=table,
        figures=drawn,
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
        environment=io.read_json(run.path / "environment.json") | {"reported_on": platform.platform()},
        command=io.read_json(run.path / "environment.json")["command"],
        measures=None if analysis is None else (analysis_cells(analysis), _meanings(analysis)),
    )


def _meanings(analysis: dict) -> tuple[str, ...]:
    return (f"Means over {analysis['images']} test images.", *explanations(analysis))


def _quality_words(quality: dict) -> str:
    return (
        f"The field reconstructs test images at {quality['psnr']:.2f} dB "
        f"(PSNR per image, averaged over {quality['n']} images; standard deviation {quality['deviation']:.2f} dB)."
    )


@torch.no_grad()
def _pictures(run: Run) -> dict[str, tuple[Figure, str]]:
    images = run.data.test.floats(torch.arange(min(SHOWN_IMAGES, len(run.data.test)))).to(run.device)
    size = tuple(images.shape[2:])
    tokens = run.field.encode(images)
    shown, reconstruction = rearrange(images, "b c h w -> b h w c"), run.field.decode(tokens, size=size)
    indices = select_tokens(tokens.shape[1], parse_selection(run.config.maps.selection))
    components = component_images(run.field, tokens[:2], size=size, selection=indices)
    maps = components.mean(dim=-1).movedim(1, -1).cpu().numpy()
    ratios = psnr(shown, reconstruction).tolist()
    images_drawn = figures.reconstructions(_unit(shown), _unit(reconstruction), ratios)
    drawn = {"reconstructions": (images_drawn, CAPTIONS["reconstructions"])}
    for image, components_of_image in enumerate(components.cpu().numpy()):
        pair = _unit(shown[image]), _unit(reconstruction[image])
        grid = figures.component_grid(*pair, components_of_image, indices)
        drawn[f"components-{image}"] = (grid, CAPTIONS["component_grid"])
        slices = figures.tdsm_slices(pair[0], maps[image], indices)
        drawn[f"tdsm-{image}"] = (slices, CAPTIONS["tdsm_slices"])
    return drawn


@torch.no_grad()
def _methods(run: Run) -> Figure:
    image = run.data.test.floats([0]).to(run.device)
    tokens, size = run.field.encode(image), tuple(image.shape[2:])
    indices = list(range(min(SHOWN_TOKENS, tokens.shape[1])))
    methods = compared(run.field)
    parts = [decompose(run.field, tokens, size=size, method=method, selection=indices) for method in methods]
    components = np.stack([part.components[0].mean(dim=-1).cpu().numpy() for part in parts])
    return figures.methods(_unit(image[0].movedim(0, -1)), components, methods, indices)


def _statistics(run: Run) -> dict[str, tuple[Figure, str]]:
    features = run.samples(ROWS["tdsm-avg"], "test").features
    maps = features[torch.arange(min(EMBEDDED_IMAGES, len(features)))].flatten(1, 2)
    pooled, labels = maps.mean(dim=1), run.data.test.labels[: len(maps)].numpy()
    deviation = maps.std(dim=1, correction=0)
    drawn = {
        "token-statistics": (
            figures.token_statistics(pooled.numpy(), deviation.numpy()),
            f"{CAPTIONS['token_statistics']} Here: {len(maps)} test images.",
        )
    }
    for name, points in {"PCA": _pca(pooled), "t-SNE": _tsne(pooled)}.items():
        if points is not None:
            drawn[name.lower()] = (
                figures.embedding(points, labels, run.data.test.classes, f"{name} of average-pooled maps"),
                f"{CAPTIONS['embedding']} Here: {len(maps)} test images; labels were not used to place the points.",
            )
    return drawn


def _results(run: Run, table: list[dict]) -> dict[str, tuple[Figure, str]]:
    classes = run.data.test.classes
    drawn = {"accuracy": (figures.accuracy_bars(table, chance=1 / len(classes)), CAPTIONS["accuracy_bars"])}
    for role in ("tdsm", "baseline"):
        if (row := best(table, role)) is not None:
            predicted = read_predictions(run, row["name"])
            labels = run.data.test.labels.repeat(len(predicted))
            matrix = confusion_matrix(labels, predicted.flatten(), len(classes))
            once = f" Every image counts once for each of {len(predicted)} seeds." if len(predicted) > 1 else ""
            caption = f"{row['name']}, the {role} row chosen on validation. {CAPTIONS['confusion']}{once}"
            drawn[f"confusion-{role}"] = (figures.confusion(matrix.numpy(), classes), caption)
    return drawn


def _unit(values: Tensor) -> np.ndarray:
    return ((values.clamp(-1, 1) + 1) / 2).cpu().numpy()


def _pca(pooled: Tensor) -> np.ndarray | None:
    from sklearn.decomposition import PCA

    return PCA(2, random_state=0).fit_transform(pooled.numpy()) if min(pooled.shape) >= 2 else None


def _tsne(pooled: Tensor) -> np.ndarray | None:
    from sklearn.manifold import TSNE

    if len(pooled) < 10:
        return None
    return TSNE(2, perplexity=min(30, len(pooled) / 4), random_state=0, init="random").fit_transform(pooled.numpy())
