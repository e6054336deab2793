"""Ridge regression onto the classes, in closed form, from samples that are read block by block."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tdsm.base.errors import NonFiniteError, UsageError

Block = tuple[Float[Tensor, "block features"], Int[Tensor, " block"]]  # some samples and their labels
Blocks = Callable[[], Iterable[Block]]  # the samples from the first to the last, as often as they are asked for
Standard = tuple[Float[Tensor, "block features"], Float64[Tensor, "block classes"]]
LARGEST = {"cpu": 16_384, "cuda": 49_152}  # rows of a matrix that is factored: 2 and 18 GiB, twice


@dataclass(frozen=True, eq=False)
class Ridge:
    """Linear scores of what was read: one solution a penalty."""

    weight: Float64[Tensor, "features penalties classes"]
    bias: Float64[Tensor, "penalties classes"]

    def scores(self, vectors: Float[Tensor, "block features"]) -> Float64[Tensor, "block penalties classes"]:
        """Score every class under every penalty; the largest names the class."""
        return (vectors.double() @ self.weight.flatten(1)).unflatten(1, self.bias.shape) + self.bias


def solve_ridge(train: Blocks, num_classes: int, penalties: Sequence[float]) -> Ridge:
    """Regress the centred class indicators on features standardised one by one, for every penalty λ.

        W = (XᵀX/n + λI)⁻¹ XᵀY/n  =  Xᵀ (XXᵀ/n + λI)⁻¹ Y/n

    The left form is taken where there are at least as many samples as features, else the right one; each matrix is
    summed in float64 over blocks and factored once a penalty (Cholesky: at 15 penalties half the time of one
    eigendecomposition). Standardisation is folded into what is returned, so it reads features as they are. A feature
    that is constant gets no weight; the intercept is not penalised.

    >>> vectors, labels = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
    >>> found = solve_ridge(lambda: [(vectors, labels)], 2, penalties=[0.1, 1.0])
    >>> found.scores(torch.tensor([[2.4], [2.6]])).argmax(dim=2)
    tensor([[0, 0],
            [1, 1]])

    Args:
        train: Gives the training samples block by block.
        num_classes: Classes.
        penalties: Each λ above 0; against features of variance 1.

    Raises:
        UsageError: If there are more samples and more features than can be solved for.
        NonFiniteError: If a feature is not finite.
    """
    mean, scale, shares, count = _statistics(train, num_classes)
    device, most = mean.device.type, LARGEST[mean.device.type]
    if min(count, len(mean)) > most:
        raise UsageError(
            f"ridge: {len(mean)} features of {count} samples; expected at most {most} of the one or the other on "
            f"{device}. Take fewer of one (--probe.max-train), or leave out this row (--probe.rows): linear is trained."
        )

    def standard() -> Iterator[Standard]:
        for vectors, labels in train():
            yield ((vectors - mean) / scale).float(), _indicators(labels, num_classes) - shares

    solve = _dual if count < len(mean) else _primal
    weight = torch.stack(solve(standard, count, penalties), dim=1) / scale[:, None, None]
    return Ridge(weight, shares - torch.einsum("f,fpc->pc", mean, weight))


def _primal(standard: Callable[[], Iterator[Standard]], count: int, penalties: Sequence[float]) -> list[Tensor]:
    """Solve for a weight a feature."""
    gram = cross = torch.zeros((), dtype=torch.float64)
    for vectors, targets in standard():
        gram = (vectors.T @ vectors).double() if gram.ndim == 0 else gram.add_(vectors.T @ vectors)
        cross = vectors.double().T @ targets + cross.to(targets)
    return _solutions(gram, cross, count, penalties)


def _dual(standard: Callable[[], Iterator[Standard]], count: int, penalties: Sequence[float]) -> list[Tensor]:
    """Solve for a weight a sample, and sum the samples by them."""
    targets = torch.cat([targets for _, targets in standard()])
    matrix = targets.new_zeros(count, count)
    for row, one in _placed(standard()):
        for column, other in _placed(standard()):
            if column.start > row.start:  # above the diagonal, which is not read
                break
            matrix[row, column] = (one @ other.T).double()
    weights = torch.cat(_solutions(matrix, targets, count, penalties), dim=1)
    summed = torch.zeros((), dtype=torch.float64)
    for place, vectors in _placed(standard()):
        summed = vectors.double().T @ weights[place] + summed.to(weights)
    return list(summed.split(targets.shape[1], dim=1))


def _placed(blocks: Iterable[Standard]) -> Iterator[tuple[slice, Tensor]]:
    """Return the vectors of each block, and where they stand among all."""
    start = 0
    for vectors, _ in blocks:
        yield slice(start, start + len(vectors)), vectors
        start += len(vectors)


def _solutions(matrix: Tensor, right: Tensor, count: int, penalties: Sequence[float]) -> list[Tensor]:
    """Solve (matrix/n + λI) x = right/n for every λ; of the matrix the lower half is read, and used up."""
    matrix /= count
    diagonal, found = matrix.diagonal().clone(), []
    for penalty in penalties:
        matrix.diagonal().copy_(diagonal + penalty)
        factor, fault = torch.linalg.cholesky_ex(matrix)
        if fault:
            raise UsageError(f"ridge: a penalty of {penalty:g} is lost in rounding. Set --probe.penalties higher.")
        found.append(torch.cholesky_solve(right / count, factor))
    return found


def _statistics(train: Blocks, num_classes: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return each feature's mean and deviation, each class's share, and the number of samples."""
    total = square = classes = torch.zeros((), dtype=torch.float64)
    for vectors, labels in train():
        wide = vectors.double()
        total, square = wide.sum(dim=0) + total.to(wide), wide.square().sum(dim=0) + square.to(wide)
        classes = _indicators(labels, num_classes).sum(dim=0) + classes.to(wide)
    count = int(classes.sum())
    mean = total / count
    deviation = (square / count - mean.square()).clamp(min=0).sqrt()
    if not deviation.isfinite().all():
        raise NonFiniteError("ridge: a feature of the training samples is not finite.")
    return mean, torch.where(deviation > 1e-6, deviation, torch.inf), classes / count, count


def _indicators(labels: Tensor, num_classes: int) -> Float64[Tensor, "block classes"]:
    return torch.nn.functional.one_hot(labels, num_classes).double()
