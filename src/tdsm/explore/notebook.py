"""A field's components in a notebook: a figure that stands still, and the page to play with in a frame."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import UsageError
from tdsm.decomposition import component_images
from tdsm.explore.export import exported_page
from tdsm.explore.studio import Shelf, Studio
from tdsm.figures.pictures import component_grid
from tdsm.figures.style import png
from tdsm.tokenfield import TokenField

SANDBOX = 'sandbox="allow-scripts allow-downloads" width="100%" height="900"'
FRAME = f'<iframe srcdoc="{{page}}" title="{{title}}" {SANDBOX}></iframe>'
FINE = 127  # levels


@dataclass(frozen=True)
class Shown:
    """What `show` returns: a notebook draws it as the page, or as the figure where pages are not drawn."""

    figure: Figure  # component images of the first image
    page: str  # HTML that needs nothing beside it
    title: str

    def save(self, path: str | Path) -> Path:
        """Write the page to a file; return its path."""
        io.write_text(Path(path), self.page)
        return Path(path)

    def _repr_html_(self) -> str:
        return FRAME.format(page=escape(self.page), title=escape(self.title))

    def _repr_png_(self) -> bytes:
        return png(self.figure, dpi=100)


def show(field: TokenField, images: Float[Tensor, "batch channels height width"]) -> Shown:
    """Show what each token of a field says about images: to look at, and to play with.

    In a notebook the last line of a cell, `tdsm.show(field, images)`, draws a page in which tokens can be switched on
    and off; `.figure` is a matplotlib figure of the first image's components, `.save("page.html")` keeps the page.

    >>> from tdsm import FieldConfig, NeuralField
    >>> field = NeuralField(FieldConfig(widths=(16,), num_latents=4, mapping_dim=6, cross_head_dim=8, self_head_dim=4))
    >>> shown = show(field, torch.zeros(2, 3, 8, 8))
    >>> ", ".join(axes.get_title() for axes in shown.figure.axes)
    'input, reconstruction, 0, 1, 2, 3'

    Args:
        field: Any token field of pictures.
        images: As the field encodes them, nominally in [-1, 1].

    Raises:
        UsageError: If images do not fit the field.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or 0 in images.shape:
        seen = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"show: images are {seen}, expected floating point of shape (batch, channels, height, width).")
    kept, size = images.detach(), (images.shape[2], images.shape[3])
    shelf = Shelf("images", lambda rows: kept[list(rows)], torch.full((len(kept),), -1), "images[{row}:{row} + 1]")
    with torch.no_grad():
        tokens = field.encode(kept[:1])
        reconstruction, parts = field.decode(tokens, size=size)[0], component_images(field, tokens, size=size)[0]
    title = f"{type(field).__name__}: {tokens.shape[1]} tokens × {tokens.shape[2]}"
    studio = Studio(title, field, (shelf,), size, images.shape[1], "import tdsm")
    page, _ = exported_page(studio, [(0, row) for row in range(len(images))], studio.methods, levels=FINE)
    before, after = (((x + 1) / 2).cpu().numpy() for x in (kept[0].movedim(0, -1), reconstruction))
    return Shown(component_grid(before, after, parts.cpu().numpy(), range(tokens.shape[1])), page, title)
