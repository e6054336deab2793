"""What to measure of a decomposition. Pure functions; component images are (batch, tokens, *points, channels).

Nothing here chooses a winner: a decomposition may be complete and redundant, or spread out and stable.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.statistics import psnr
from tdsm.decomposition.reduce import ComponentImages
from tdsm.tokenfield import TokenField, resolve_points


def completeness_error(
    components: ComponentImages,
    base: Float[Tensor, "batch *points channels"],
    reconstruction: Float[Tensor, "batch *points channels"],
) -> Float[Tensor, " batch"]:
    """Measure how far components and base are from adding up to the reconstruction.

        ‖base + Σ_k I_k − reconstruction‖ / ‖reconstruction − base‖         (over points and channels)

    0 is complete; 1 is as wrong as the base alone. Pass the components of all tokens.

    >>> base, components = torch.zeros(1, 4, 4, 3), torch.rand(1, 5, 4, 4, 3)
    >>> completeness_error(components, base, components.sum(1))
    tensor([0.])
    """
    missed = (base + components.sum(1) - reconstruction).flatten(1).norm(dim=1)
    explained = (reconstruction - base).flatten(1).norm(dim=1)
    return torch.where(missed == 0, 0.0, missed / explained)


def redundancy(components: ComponentImages) -> Float[Tensor, " batch"]:
    """Measure how alike the component images of one image are: 0 uncorrelated, 1 all the same up to scale.

        mean over pairs k < l of |corr(I_k, I_l)|         (Pearson, over points and channels)

    A constant component correlates 0 with every other; a single one has nobody to repeat: 0.

    >>> redundancy(torch.rand(1, 1, 4, 4, 3).expand(2, 5, 4, 4, 3)).round(decimals=3)
    tensor([1., 1.])
    """
    correlation = _standardize(components) @ _standardize(components).mT
    count = components.shape[1]
    pairs = correlation.abs().triu(1).sum((1, 2))
    return pairs / max(1, count * (count - 1) // 2)


def effective_rank(components: ComponentImages) -> Float[Tensor, " batch"]:
    """Count the directions that the component images of one image span, weighted by their size.

        exp(− Σ_i p_i log p_i),   p_i = σ_i / Σ_j σ_j,   σ: singular values of the (tokens, points · channels) matrix

    From 1 (all proportional) to the number of tokens; 0 if all are zero. Source: Roy & Vetterli 2007.

    >>> effective_rank(torch.eye(4).reshape(1, 4, 2, 2, 1)).round(decimals=3)
    tensor([4.])
    """
    singular = torch.linalg.svdvals(components.flatten(2))
    total = singular.sum(-1, keepdim=True)
    share = singular / torch.where(total == 0, 1.0, total)
    return torch.where(total[:, 0] == 0, 0.0, torch.special.entr(share).sum(-1).exp())


def spatial_spread(components: ComponentImages) -> Float[Tensor, "batch tokens"]:
    """Measure how evenly each component is spread over the points: 0 at one point, 1 everywhere alike.

        − Σ_q p(q) log p(q) / log N,   p(q) = Σ_c I_k(q, c)² / Σ_q',c I_k(q', c)²

    A component that is zero everywhere has spread 0.

    >>> spatial_spread(torch.ones(1, 2, 8, 8, 3)).round(decimals=3)
    tensor([[1., 1.]])
    """
    energy = components.square().sum(-1).flatten(2)
    total = energy.sum(-1, keepdim=True)
    share = energy / torch.where(total == 0, 1.0, total)
    return torch.special.entr(share).sum(-1) / max(np.log(energy.shape[-1]), 1e-12)


def stability(
    components: ComponentImages,
    others: Float[Tensor, "images others *places channels"],
    shift: Sequence[int] | None = None,
) -> Float[Tensor, "batch tokens"]:
    """Correlate each token's component with the same token's on another version of the image.

        corr(I_k(x), I'_k(x + shift))         (Pearson, over the points both have, and channels)

    Args:
        components: Of the image.
        others: Of the noised or shifted image.
        shift: By how many points the content moved along each axis; None for not at all.

    Returns:
        Values in [-1, 1]; 0 where a component is constant.

    Raises:
        UsageError: If shapes differ, or a shift leaves no points in common.

    >>> images = torch.rand(2, 5, 8, 8, 3)
    >>> moved = images.roll((1, -2), dims=(2, 3))
    >>> torch.allclose(stability(images, moved, shift=(1, -2)), torch.ones(2, 5))
    True
    """
    sizes = components.shape[2:-1]
    shift = [0] * len(sizes) if shift is None else [int(s) for s in shift]
    if components.shape != others.shape or len(shift) != len(sizes):
        raise UsageError(
            f"stability: components have shape {tuple(components.shape)} and {tuple(others.shape)}, shift {shift}; "
            "expected equal shapes, and one shift an axis of points."
        )
    if any(abs(s) >= n for s, n in zip(shift, sizes, strict=True)):
        raise UsageError(f"stability: a shift of {shift} leaves no points in common on {tuple(sizes)}.")
    for axis, (s, n) in enumerate(zip(shift, sizes, strict=True), start=2):
        components = components.narrow(axis, max(0, -s), n - abs(s))
        others = others.narrow(axis, max(0, s), n - abs(s))
    return (_standardize(components) * _standardize(others)).sum(-1)


def match_tokens(
    components: ComponentImages, others: Float[Tensor, "images others *places channels"]
) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Find each token's counterpart in another field, such as one trained from another seed.

    The one-to-one assignment m with the greatest Σ_k s(k, m(k)), with similarity

        s(k, l) = mean over images of corr(I_k, I'_l)         (Pearson, over points and channels)

    by the Hungarian algorithm.

    Returns:
        For each token its counterpart's index, and their similarity in [-1, 1].

    Raises:
        UsageError: If the other field has fewer tokens, or images or points differ.

    >>> images = torch.rand(4, 3, 8, 8, 3)
    >>> match_tokens(images, images[:, [2, 0, 1]])[0]
    tensor([1, 2, 0])
    """
    return match_similar(token_similarity(components, others).mean(0))


def token_similarity(
    components: ComponentImages, others: Float[Tensor, "images others *places channels"]
) -> Float[Tensor, "batch tokens others"]:
    """Correlate every token's component with every component of another field, image by image.

    Raises:
        UsageError: If the other field has fewer tokens, or images or points differ.
    """
    same = components.shape[:1] + components.shape[2:] == others.shape[:1] + others.shape[2:]
    if not same or components.shape[1] > others.shape[1]:
        raise UsageError(
            f"match_tokens: components have shape {tuple(components.shape)} and {tuple(others.shape)}; expected the "
            "same images at the same points, and at least as many tokens in the second."
        )
    return _standardize(components) @ _standardize(others).mT


def match_similar(
    similarity: Float[Tensor, "tokens others"],
) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Find each token's counterpart by the similarity of all pairs, as `match_tokens` does.

    >>> match_similar(torch.tensor([[0.1, 0.9], [0.5, 0.8]]))
    (tensor([1, 0]), tensor([0.9000, 0.5000]))
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = map(torch.from_numpy, linear_sum_assignment(similarity.detach().cpu().numpy(), maximize=True))
    columns = columns.to(similarity.device)
    return columns, similarity[rows.to(similarity.device), columns]


def rank_by_energy(components: ComponentImages) -> Int[Tensor, "batch tokens"]:
    """Order the tokens of each image by ‖I_k‖, the largest first.

    >>> rank_by_energy(torch.tensor([1.0, 3.0, 2.0]).reshape(1, 3, 1, 1, 1))
    tensor([[1, 2, 0]])
    """
    return components.flatten(2).norm(dim=-1).argsort(dim=-1, descending=True, stable=True)


def deletion_curve(
    field: TokenField,
    tokens: Float[Tensor, "batch tokens token_width"],
    rank: Int[Tensor, "images ranked"],
    images: Float[Tensor, "images *points channels"],
    removed: Sequence[int],
    size: Sequence[int] | None = None,
    coords: Float[Tensor, "points axes"] | None = None,
) -> Float[Tensor, "batch steps"]:
    """Measure the reconstruction's PSNR in dB as tokens are removed, the first of `rank` first.

        PSNR(images, decoder(q, Z ∖ {z_rank(1), …, z_rank(n)})) for each n of `removed`

    A rank that finds what matters makes the curve fall fast.

    Args:
        field: Any token field.
        tokens: Tokens of this field.
        rank: Token indices of each image, the first to go first; `rank_by_energy` gives one.
        images: What to compare with, in [-1, 1]: the images themselves, or the full reconstruction.
        removed: Numbers of tokens to remove, each from 0 to all.
        size: Points along each axis. Give either `size` or `coords`.
        coords: Scattered coordinates in [-1, 1].

    Raises:
        UsageError: If a number of tokens or a shape does not fit.
    """
    return _curve(field, tokens, rank, images, [(n, tokens.shape[1]) for n in removed], size, coords)


def insertion_curve(
    field: TokenField,
    tokens: Float[Tensor, "batch tokens token_width"],
    rank: Int[Tensor, "images ranked"],
    images: Float[Tensor, "images *points channels"],
    inserted: Sequence[int],
    size: Sequence[int] | None = None,
    coords: Float[Tensor, "points axes"] | None = None,
) -> Float[Tensor, "batch steps"]:
    """Measure the reconstruction's PSNR in dB as tokens come in, the first of `rank` first.

        PSNR(images, decoder(q, {z_rank(1), …, z_rank(n)})) for each n of `inserted`

    A rank that finds what matters makes the curve rise fast. Arguments as in `deletion_curve`.
    """
    return _curve(field, tokens, rank, images, [(0, n) for n in inserted], size, coords)


def between_image_share(features: Float[Tensor, "batch tokens *features"]) -> Float[Tensor, " tokens"]:
    """Measure which share of a token's variance comes from the image, not from which token it is.

        V_image(k) / (V_image(k) + V_token(k)),   V_image(k) = mean_b ‖F_bk − F̄_k‖²,   V_token(k) = ‖F̄_k − F̄‖²

    with F̄_k the mean over images, F̄ that over images and tokens.

    Args:
        features: Component images, token values or tokens of several images.

    Returns:
        1 where tokens differ between images alone, 0 where a token is the same whatever the image.

    >>> between_image_share(torch.arange(3.0).reshape(1, 3, 1).expand(4, 3, 1))
    tensor([0., 0., 0.])
    """
    return ImageShare().add(features).share().to(features.dtype)


class ImageShare:
    """The sums of `between_image_share`, in float64, for images that come in batches."""

    images: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, features: Float[Tensor, "batch tokens *features"]) -> "ImageShare":
        """Add some images."""
        flat = features.flatten(2).double()
        self.images += len(flat)
        self.total = self.total + flat.sum(0)
        self.squares = self.squares + flat.square().sum((0, -1))
        return self

    def share(self) -> Float[Tensor, " tokens"]:
        """Return the share of all images added."""
        mean = torch.as_tensor(self.total) / self.images
        from_image = (self.squares / self.images - mean.square().sum(-1)).clamp(min=0)
        from_token = (mean - mean.mean(0)).square().sum(-1)
        total = from_image + from_token
        return from_image / torch.where(total == 0, 1.0, total)

    def constants(self, threshold: float = 0.05) -> list[int]:
        """Name the tokens that hardly depend on the image, as `positional_constants` does."""
        return (self.share() < threshold).nonzero().flatten().tolist()


def positional_constants(features: Float[Tensor, "batch tokens *features"], threshold: float = 0.05) -> list[int]:
    """Name the tokens that hardly depend on the image: between-image share below `threshold`.

    Such a token is a constant of its position in the list, the same picture for every input.

    >>> features = torch.arange(3.0).reshape(1, 3, 1).repeat(4, 1, 1)
    >>> features[:, 1] = torch.tensor([[-5.0], [5.0], [-5.0], [5.0]])
    >>> positional_constants(features)
    [0, 2]
    """
    return ImageShare().add(features).constants(threshold)


def class_selectivity(components: ComponentImages, labels: Int[Tensor, " batch"]) -> Float[Tensor, " tokens"]:
    """Measure which share of a pooled component's variance lies between classes: η² of an analysis of variance.

        η²(k) = Σ_y n_y ‖m_yk − m_k‖² / Σ_b ‖p_bk − m_k‖²,   p_bk: component pooled over points

    with m_yk the mean over images of class y, m_k over all. In [0, 1]; about (classes − 1) / (images − 1) by
    chance, 0 for a token that never varies.

    >>> pooled = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1, 1, 1)
    >>> class_selectivity(pooled, torch.tensor([0, 0, 1, 1]))
    tensor([1.])
    """
    pooled = components.flatten(2, -2).mean(2)
    centered = pooled - pooled.mean(0)
    members = torch.nn.functional.one_hot(labels).to(pooled.dtype)
    sums = torch.einsum("by,bkc->ykc", members, centered)
    between = (sums.square().sum(-1) / members.sum(0).clamp(min=1)[:, None]).sum(0)
    total = centered.square().sum((0, -1))
    return between / torch.where(total == 0, 1.0, total)


def _standardize(components: Tensor) -> Float[Tensor, "batch tokens features"]:
    """Centre each component and scale it to norm 1; constants become zero."""
    flat = components.flatten(2)
    centered = flat - flat.mean(-1, keepdim=True)
    norm, scale = centered.norm(dim=-1, keepdim=True), flat.norm(dim=-1, keepdim=True)
    is_constant = norm <= 8 * torch.finfo(flat.dtype).eps * scale
    return torch.where(is_constant, 0.0, centered / torch.where(is_constant, 1.0, norm))


def _curve(
    field: TokenField,
    tokens: Tensor,
    rank: Tensor,
    images: Tensor,
    ranges: list[tuple[int, int]],
    size: Sequence[int] | None,
    coords: Tensor | None,
) -> Tensor:
    batch, count, width = tokens.shape
    if rank.shape != (batch, count) or any(not 0 <= low <= high <= count for low, high in ranges):
        raise UsageError(
            f"deletion or insertion curve: rank has shape {tuple(rank.shape)}, expected {(batch, count)}; numbers of "
            f"tokens are expected from 0 to {count}."
        )
    points, shape = resolve_points(field, size, coords, device=tokens.device)
    queries = field.queries(points)
    if images.shape[:-1] != (batch, *shape):
        raise UsageError(f"deletion or insertion curve: images have shape {tuple(images.shape)}, points are {shape}.")
    images = images.flatten(1, -2)[:, :, None]
    ranked = tokens.gather(1, rank[..., None].expand(-1, -1, width))
    nothing = field.attention_parts(queries, tokens[:, :1]).bias.expand(batch, len(points), -1)
    steps = []
    for low, high in ranges:
        left = ranked[:, low:high]
        shown = field.reconstruct(queries, left) if high > low else field.readout(queries, nothing)
        steps.append(psnr(images, shown[:, :, None]))
    return torch.stack(steps, dim=1)
