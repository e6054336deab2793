"""A residual network on maps that learns fast: whitened patches, batch normalisation, halving by the maximum.

What it is made of was measured to converge in a few passes: whitened patches as a start (Page 2019, "How to train your
ResNet"; Jordan 2024, arXiv:2404.00498), normalisation over the batch (Ioffe & Szegedy 2015), identities around
convolutions (He et al. 2016).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tdsm.classification.config import HeadConfig
from tdsm.classification.heads import Head, Logits, Maps, channels_first, last_layer
from tdsm.training import processes

LARGE = 32  # longest side that is read patch by overlapping patch
COMPONENTS = 4  # most principal components of patches that are read, in multiples of the width
NOISE = 1e-3  # added to the variance of a patch's component, so that what hardly varies is not made loud
SCORED = 3.0  # norm of what is scored, were all its values 1: maxima are far from 0, and scores are to begin near it
MOMENTUM = 0.1  # share of a step's statistics in those that hold after training
READ_VALUES = 2**24  # most values of training maps that patches are whitened by


class ResidualNetwork(Head):
    """A small residual network: whitened patches, three stages, the maximum over places, linear.

    Patches are 2×2 and overlap, but for maps larger than 32 × 32; the filters that read them, at most 4 · `width`,
    stay as they are, and each has both signs. A stage convolves, halves the size by the maximum, and adds `depth`
    convolutions to what it then has; stages are `width`, 2 · `width` and 4 · `width` wide. All convolutions are 3×3
    and normalised over the batch, so that in training an image's scores depend on the others of its batch.
    """

    patches: Tensor
    needs_size, convolves, width_option = True, True, "width"

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        window = min(2, *size)
        self.components = min(num_maps * window**2, COMPONENTS * config.width)
        self.stride, shape = 2 if max(size) > LARGE else 1, (self.components, num_maps, window, window)
        self.register_buffer("patches", torch.randn(shape) / (num_maps * window**2) ** 0.5)
        layers, before = list[nn.Module](), 2 * self.components
        for after in (config.width, 2 * config.width, 4 * config.width):
            layers.append(_Convolution(before, after, halves=True))
            layers += [_Added(after) for _ in range(config.depth)]
            before = after
        self.convolve = nn.Sequential(*layers)
        self.classify, self.share = last_layer(before, num_classes, config), SCORED / before**0.5
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        seen = F.conv2d(channels_first(maps), self.patches, stride=self.stride)
        return self.classify(self.share * self.convolve(F.gelu(torch.cat([seen, -seen], dim=1))).amax((2, 3)))

    @torch.no_grad()
    def prepare(self, sample: Callable[[], Maps]) -> None:
        """Read patches by the largest principal components of those of training maps, each of variance 1.

        w_i = v_i / √(λ_i + ε),    second moment of patches = Σ_i λ_i v_i v_iᵀ
        """
        window, maps = self.patches.shape[-1], sample()
        few = maps[: max(1, READ_VALUES // maps[0].numel())]
        seen = F.unfold(few.movedim(-1, 1).double(), window, stride=window).movedim(1, 2).flatten(0, 1)
        variances, directions = torch.linalg.eigh(seen.mT @ seen / len(seen))
        largest = slice(-self.components, None)
        filters = (directions[:, largest] / (variances[largest].clamp(min=0) + NOISE).sqrt()).mT.flip(0)
        self.patches.copy_(filters.view_as(self.patches))


class _Convolution(nn.Module):
    """GELU(normalised(convolution(x))), its size halved before it is normalised if so wished."""

    def __init__(self, before: int, after: int, halves: bool = False):
        super().__init__()
        self.halves = halves
        self.convolve, self.normalise = nn.Conv2d(before, after, 3, padding=1, bias=False), BatchNorm(after)
        nn.init.dirac_(self.convolve.weight[: min(before, after)].data)  # passes on what it can; others are random

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.convolve(maps)
        return F.gelu(self.normalise(F.max_pool2d(maps, 2, ceil_mode=True) if self.halves else maps))


class _Added(_Convolution):
    """x + GELU(normalised(convolution(x)))."""

    def __init__(self, width: int):
        super().__init__(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + super().forward(maps)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over all images of a step, those of other processes too; with `accumulate`, of each part.

    One value a channel has no deviation: it is normalised as after training. A process that has no images of a step
    takes one at no weight, which counts here all the same.
    """

    def forward(self, input: Float[Tensor, "batch maps height width"]) -> Tensor:
        """Return the maps, every channel of mean 0 and variance 1 over batch and places, then scaled and shifted."""
        if self.training and processes.count() > 1:
            return self._over_processes(input)
        is_over_batch = self.training and input[:, 0].numel() > 1
        kept = self.running_mean, self.running_var
        return F.batch_norm(input, *kept, self.weight, self.bias, is_over_batch, MOMENTUM, self.eps)

    def _over_processes(self, maps: Tensor) -> Tensor:
        values = maps.to(torch.promote_types(maps.dtype, torch.float32))
        total, squares = values.sum((0, 2, 3)), values.square().sum((0, 2, 3))
        count = torch.full_like(total, values[:, 0].numel())
        total, squares, count = processes.total_passing_gradients(torch.stack([total, squares, count]))
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(mean.detach(), MOMENTUM)
        self.running_var.lerp_((variance * count / (count - 1).clamp(min=1)).detach(), MOMENTUM)
        scale = self.weight * (variance + self.eps).rsqrt()
        shown = (values - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        return shown.to(maps.dtype)
