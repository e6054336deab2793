"""What is measured: the ways to decode tokens alone, and what stands around decoding.

A case is built for a problem and then takes the problem's tokens. Attention is fused in every loop
(`scaled_dot_product_attention`); the best of the loops is what everything else is compared with.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tdsm.bench.measure import gated_floor
from tdsm.classification.heads import TDSMClassifier
from tdsm.decomposition import component_images, decompose, pooled_map, spatial_map
from tdsm.decomposition.separated import InverseDeviation, prepare
from tdsm.models.field import NeuralField
from tdsm.tokenfield.coords import grid

FORWARD, BACKWARD, STEP = "forward", "forward+backward", "step"
CLASSES = 10

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """What is decoded: a field with random weights, images, tokens like theirs, a square grid."""

    field: NeuralField
    images: Tensor
    tokens: Tensor
    side: int

    @property
    def pairs(self) -> int:
        """Count (image, token) pairs."""
        return self.tokens.shape[:2].numel()

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return self.side, self.side

    @property
    def units(self) -> int:
        """Count the gated hidden units that decoding every token at every point takes."""
        config = self.field.config
        return self.pairs * self.side**2 * config.query_dim * config.feedforward_multiple

    def to(self, dtype: torch.dtype) -> "Problem":
        """Return the problem in another dtype."""
        field = copy.deepcopy(self.field).to(dtype)
        return replace(self, field=field, images=self.images.to(dtype), tokens=self.tokens.to(dtype))


@dataclass(frozen=True)
class Case:
    """Something to measure."""

    build: Callable[[Problem], Run]
    modes: tuple[str, ...] = (FORWARD, BACKWARD)
    dtype: torch.dtype | None = None  # its own; None takes the problem's
    is_loop: bool = False
    decodes_alone: bool = True  # every token at every point, so that the floor of gated units holds
    keeps_hidden: bool = False  # until the backward pass
    warm_tokens: int | None = 1  # of an image, in the first call, which is not measured; None takes all


def decoding(strategy: str, backend: str | None = None) -> Callable[[Problem], Run]:
    """Decode all tokens by a strategy of `component_images`."""
    return lambda p: lambda tokens: component_images(p.field, tokens, p.size, strategy=strategy, backend=backend)


def compiled_loop(problem: Problem) -> Run:
    """The loop, its step by torch.compile."""
    field, queries = problem.field, problem.field.queries(grid(problem.size, device=problem.tokens.device))
    step = torch.compile(lambda token: field.readout(queries, field.attend(queries, token)), dynamic=False)
    return lambda tokens: torch.stack([step(token) for token in tokens.split(1, dim=1)], dim=1)


def inductor(problem: Problem) -> Run:
    """The separated readout with its gated sum in plain operations, left to torch.compile to fuse."""
    field, queries = problem.field, problem.field.queries(grid(problem.size, device=problem.tokens.device))
    readout = field.separable_readout()
    assert readout is not None

    @partial(torch.compile, dynamic=False)
    def gated_sum(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        u, g = ((a + b[:, None]) * r[..., None] + bias).chunk(2, dim=-1)
        gated = u * F.gelu(g)
        return torch.stack([(gated * channel).sum(-1) for channel in weight], dim=-1)

    def run(tokens: Tensor) -> Tensor:
        ready = prepare(readout, queries, fold=False)
        assert ready.channel_weight is not None
        values = field.attend_one(tokens).flatten(0, 1)
        centered = values - values.mean(-1, keepdim=True)
        inverse = InverseDeviation.apply(ready.query_centered, centered, ready.eps)
        hidden = F.linear(centered, ready.hidden_weight)
        gated = gated_sum(ready.query_hidden, hidden, inverse, ready.hidden_bias, ready.output_weight)
        return gated + ready.query_linear + F.linear(values, ready.channel_weight)[:, None]

    return run


def mean_maps(problem: Problem) -> Run:
    """The map of each token's mean over colours."""
    return lambda tokens: spatial_map(problem.field, tokens, problem.size)


def pooled(problem: Problem) -> Run:
    """The average over space of each of these maps."""
    return lambda tokens: pooled_map(problem.field, tokens, problem.size)


def additive(problem: Problem) -> Run:
    """Additive components of all tokens, three quadrature points: another question, about the same tokens."""
    return lambda tokens: decompose(problem.field, tokens, problem.size, method="additive", points=3).components


def encoding(problem: Problem) -> Run:
    """Pixels to tokens."""
    return lambda _: problem.field.encode(problem.images)


def pixels_to_tdsm(problem: Problem) -> Run:
    """Pixels to tokens to maps."""
    return lambda _: spatial_map(problem.field, problem.field.encode(problem.images), problem.size)


def finetuning(problem: Problem) -> Run:
    """One optimizer step of the whole classifier, encoder included, through the maps of all tokens."""
    field = copy.deepcopy(problem.field)
    head = TDSMClassifier(problem.tokens.shape[1], CLASSES).to(problem.images)
    optimizer = torch.optim.AdamW([*field.parameters(), *head.parameters()], lr=1e-6)
    labels = torch.arange(len(problem.images), device=problem.images.device) % CLASSES

    def run(_: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(spatial_map(field, field.encode(problem.images), problem.size)), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def work_of(case: Case, problem: Problem, mode: str) -> Run:
    """Return what is timed: the case alone, or with the gradients of tokens and weights."""
    problem = problem if case.dtype is None else problem.to(case.dtype)
    run = case.build(problem)
    if mode == STEP:
        return run
    if mode == FORWARD:
        return torch.no_grad()(lambda tokens: run(tokens.to(problem.tokens.dtype)))
    weights = [weight for weight in problem.field.parameters() if weight.requires_grad]

    def with_gradients(tokens: Tensor) -> Tensor:
        tokens = tokens.detach().to(problem.tokens.dtype).requires_grad_()
        result = run(tokens)
        torch.autograd.grad(result, [tokens, *weights], torch.ones_like(result), allow_unused=True)
        return result.detach()

    return with_gradients


def bare(problem: Problem) -> Run:
    """As many bare gated units summed as decoding has, and nothing else: its floor."""
    floor = gated_floor(problem.units, problem.tokens.device)

    def run(tokens: Tensor) -> Tensor:
        floor()
        return tokens[:0]

    return run


LOOP = Case(decoding("loop"), is_loop=True, keeps_hidden=True)
OTHER = Case(encoding, modes=(FORWARD,), decodes_alone=False)
FLOOR = "gated-floor"
END_TO_END = ("encode", "pixels-to-tdsm", "finetune")

CASES: dict[str, Case] = {
    "loop": LOOP,
    "loop-compiled": replace(LOOP, build=compiled_loop),
    "loop-bf16": replace(LOOP, dtype=torch.bfloat16),
    "loop-bf16-compiled": replace(LOOP, build=compiled_loop, dtype=torch.bfloat16),
    "batched": Case(decoding("batched"), keeps_hidden=True),
    "exact-eager": Case(decoding("exact", "eager")),
    "exact-inductor": Case(inductor, modes=(FORWARD,), warm_tokens=None),
    "exact": Case(decoding("exact")),
    "additive": replace(OTHER, build=additive, modes=(FORWARD, BACKWARD)),
    "exact-mean": Case(mean_maps),
    "pooled": Case(pooled),
    "encode": OTHER,
    "pixels-to-tdsm": Case(pixels_to_tdsm, modes=(FORWARD,)),
    "finetune": Case(finetuning, modes=(STEP,)),
    FLOOR: Case(bare, modes=(FORWARD,)),
}
