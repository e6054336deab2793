"""Pictures of shapes: a surface seen from the side, painted by numbers at its vertices; and files for 3-D viewers."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Real
from matplotlib import colormaps
from matplotlib.colors import Normalize, hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from tdsm.base.errors import ResourceError, UsageError
from tdsm.base.extras import missing_words
from tdsm.figures.style import FAINT, PALETTE, SIGNED, box, colour_bar, drawing, finite, write

Paint = Real[np.ndarray, "..."]  # a number a vertex
Colours = Float[np.ndarray, "rows 3"]
SIDE, NAMED, LIGHT, VIEW = 3.0, 8, (0.4, -0.5, 0.77), (22.0, -60.0)  # inches; names; towards the light; degrees


@drawing(
    "One decoded surface, once for each painting. Whole numbers, such as the token that gave most to a place, have "
    "a hue each, and the most frequent are named; real numbers, such as what one token gave, are red above zero, blue "
    "below and white at zero, on the scale of the bar beside them. Shading is by a lamp from above, and means nothing."
)
def painted_shape(
    vertices: Float[np.ndarray, "vertices 3"],
    faces: Int[np.ndarray, "faces 3"],
    paints: Mapping[str, Paint],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    up: int = 1,
) -> Figure:
    """Draw a surface once for each painting of its vertices.

    >>> corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    >>> faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    >>> figure = painted_shape(corners, faces, {"token": np.arange(4), "given": np.array([0.1, -0.2, 0.3, 0.0])})
    >>> [text.get_text() for text in figure.texts]
    ['token', 'given']

    Args:
        vertices: Of the surface.
        faces: Three vertices each, counter-clockwise seen from outside.
        paints: Under a title the number of every vertex: whole ones without an order, or real amounts.
        names: Under a title the names of its whole numbers; they stand for themselves if not given.
        up: The axis that points up.

    Raises:
        UsageError: If there is nothing to draw, or a painting has another length.
    """
    check_surface(vertices, faces, paints)
    figure = Figure((0.2 + SIDE * len(paints), SIDE + 1.3))
    corners = np.roll(finite("vertices", vertices), 2 - up, axis=1)[faces]
    light = _lit(corners)
    for number, (title, paint) in enumerate(paints.items()):
        left = 0.1 + SIDE * number
        write(figure, left + 0.1, 0.2, title, size=10.0)
        across, down = figure.get_size_inches()
        place = (left / across, 1 - (0.35 + SIDE) / down, SIDE / across, SIDE / down)
        axes = figure.add_axes(place, projection="3d")
        assert isinstance(axes, Axes3D), "by its projection"
        _show(axes, corners, _face_colours(paint, faces) * light[:, None])
        if _is_whole(paint):
            _name(figure, (left + 0.1, SIDE + 0.45), paint, (names or {}).get(title))
        else:
            limit = _limit(paint)
            colour_bar(
                figure, box(figure, left + 0.5, SIDE + 0.5, SIDE - 1, 0.1), SIGNED, -limit, limit, horizontal=True
            )
    return figure


def mesh_bytes(
    vertices: Float[np.ndarray, "vertices 3"],
    faces: Int[np.ndarray, "faces 3"],
    paint: Paint,
    kind: Literal["ply", "glb"] = "ply",
) -> bytes:
    """Return a painted surface as the bytes of a PLY or binary glTF file, for any 3-D viewer.

    Raises:
        UsageError: If the painting has another length than there are vertices.
        ResourceError: If trimesh is not installed.
    """
    check_surface(vertices, faces, {kind: paint})
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise ResourceError(f"mesh_bytes: {missing_words(error)}") from None
    colours = np.rint(255 * vertex_colours(paint)).astype(np.uint8)
    mesh = trimesh.Trimesh(np.asarray(vertices), np.asarray(faces), vertex_colors=colours, process=False)
    data = mesh.export(file_type=kind)
    assert isinstance(data, bytes), "both kinds are binary"
    return data


def vertex_colours(paint: Paint) -> Colours:
    """Return the colour of every vertex: a hue for each whole number, or the place of real ones on the signed scale.

    Whole numbers below ten have hues of their own; where there are others, the most frequent differ most.

    >>> vertex_colours(np.array([-1.0, 0.0])).round(1).tolist()
    [[0.0, 0.2, 0.4], [1.0, 1.0, 1.0]]
    """
    if not _is_whole(paint):
        limit = _limit(paint)
        return colormaps[SIGNED](Normalize(-limit, limit, clip=True)(finite("paint", paint)))[:, :3]
    values, inverse, counts = np.unique(paint, return_inverse=True, return_counts=True)
    if values.min() >= 0 and values.max() < len(PALETTE):
        return np.array([to_rgb(PALETTE[value]) for value in values])[inverse]
    return _hues(len(values))[np.argsort(np.argsort(-counts, kind="stable"))][inverse]


def check_surface(vertices: np.ndarray, faces: np.ndarray, paints: Mapping[str, Paint]) -> None:
    """Raise `UsageError` unless there are faces, and every painting has a number for each vertex."""
    if not paints or not len(faces):
        raise UsageError(
            f"painted_shape: {len(faces)} faces and {len(paints)} paintings, expected at least one of each."
        )
    for title, paint in paints.items():
        if np.shape(paint) != (len(vertices),):
            raise UsageError(
                f"painted_shape: {title!r} has shape {np.shape(paint)}, expected one number for each of the "
                f"{len(vertices)} vertices."
            )


def _is_whole(paint: Paint) -> bool:
    return np.issubdtype(np.asarray(paint).dtype, np.integer)


def _limit(paint: Paint) -> float:
    """Return where the signed scale ends: the 99.5th percentile of the amounts' size."""
    return float(np.quantile(np.abs(finite("paint", paint)), 0.995)) or 1.0


def _hues(count: int) -> Colours:
    """Return hues a golden section apart, the next one paler or darker."""
    tones = [(k * 0.618034 % 1, (0.75, 0.5, 0.9)[k % 3], (0.8, 0.95, 0.6)[k % 3]) for k in range(count)]
    return hsv_to_rgb(np.array(tones))


def _face_colours(paint: Paint, faces: Int[np.ndarray, "faces 3"]) -> Colours:
    """Return the colour of the whole number that most corners have, or the mean of the corners' colours."""
    corners = vertex_colours(paint)[faces]
    if not _is_whole(paint):
        return corners.mean(1)
    agree = paint[faces[:, 1]] == paint[faces[:, 2]]
    return np.where(agree[:, None], corners[:, 1], corners[:, 0])


def _lit(corners: Float[np.ndarray, "faces 3 3"]) -> Float[np.ndarray, "faces"]:
    """Return how bright each face is, from 0.45 turned away from the light to 1 turned to it."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    towards = (normals / np.where(length > 0, length, 1.0)) @ (np.array(LIGHT) / np.linalg.norm(LIGHT))
    return 0.725 + 0.275 * towards


def _show(axes: Axes3D, corners: np.ndarray, colours: Colours) -> None:
    colours = np.clip(colours, 0, 1)
    axes.add_collection3d(Poly3DCollection(corners, facecolors=colours, edgecolors=colours, linewidths=0.2))
    middle, reach = (corners.min((0, 1)) + corners.max((0, 1))) / 2, np.ptp(corners, axis=(0, 1)).max() / 2
    axes.set(**{f"{name}lim": (at - reach, at + reach) for name, at in zip("xyz", middle, strict=True)})
    axes.set_box_aspect((1, 1, 1), zoom=1.25)
    axes.set_proj_type("ortho")
    axes.view_init(*VIEW)
    axes.set_axis_off()


def _name(figure: Figure, place: tuple[float, float], paint: Paint, names: Sequence[str] | None) -> None:
    """Name the most frequent numbers of a painting, with their colours."""
    values, first, counts = np.unique(paint, return_index=True, return_counts=True)
    shown = np.argsort(-counts, kind="stable")[:NAMED]
    colours = vertex_colours(paint)
    keys = [
        Line2D(
            [], [], linestyle="", marker="s", color=colours[first[k]], label=names[values[k]] if names else values[k]
        )
        for k in shown
    ]
    across, down = figure.get_size_inches()
    anchor = (place[0] / across, 1 - place[1] / down)
    columns = min(4, len(keys))
    if len(values) > len(shown):
        write(figure, place[0] + 0.1, place[1] + 0.55, f"and {len(values) - len(shown)} more", size=7.0, color=FAINT)
    figure.legend(handles=keys, loc="upper left", bbox_to_anchor=anchor, ncols=columns, fontsize=7, handletextpad=0.1)
