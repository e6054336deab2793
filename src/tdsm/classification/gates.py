"""A gate that learns, together with a head, which n tokens the head should see."""

from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdsm.base.randomness import generator
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.heads import Logits, Maps, TDSMClassifier
from tdsm.classification.probe import Samples, accuracy_of, new_head, statistics_for
from tdsm.training.engine import Phase, Task
from tdsm.training.engine import train as train_task
from tdsm.training.steps import Order, warmup_cosine

SCORE_RATE = 0.02  # learning rate of the scores, in units of their noise
WARMUP = 0.25  # share of the passes in which every token is open as often as any other


class TokenGate(nn.Module):
    """Open exactly n of K tokens, by scores s that are trained.

    In training every sample draws its own n tokens, without replacement, in proportion to exp s_k:

        u_k = s_k − mean(s) + g_k,   g_k ~ Gumbel(0, 1)
        z_k = 1 if u_k is among the n largest, else 0
        ∂z_k / ∂u_k := σ'(u_k − t),   t midway between the n-th and the (n + 1)-th largest u

    In evaluation there is no g: the n largest scores are open. A Gumbel top-n draw (Kool et al. 2019) with a
    straight-through gradient (Bengio et al. 2013). Subtracting the mean makes tokens compete: a gradient that all of
    them share moves none. The alternative, hard concrete gates with a penalty on the expected number (Louizos et al.
    2018), is right on average alone, and only under a well-chosen weight of the penalty; here the head sees n tokens
    in every step, and nothing is to be weighed.

    Args:
        num_tokens: K.
        count: n, from 1 to K − 1.
    """

    def __init__(self, num_tokens: int, count: int):
        super().__init__()
        self.count = count
        self.scores = nn.Parameter(torch.zeros(num_tokens))

    def forward(self, noise: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
        """Return a gate of 0 or 1 for every sample and token; g is `noise`."""
        scores = self.scores - self.scores.mean() + noise
        largest = scores.detach().topk(self.count + 1, dim=1)
        threshold = largest.values[:, -2:].mean(dim=1, keepdim=True)
        is_open = torch.zeros_like(scores).scatter(1, largest.indices[:, :-1], 1.0)
        slope = torch.sigmoid(scores - threshold)
        return is_open + (slope - slope.detach())  # of value 0, exactly

    def chosen(self) -> list[int]:
        """Return the n tokens with the largest scores, in order."""
        return sorted(self.scores.topk(self.count).indices.tolist())


class GatedClassifier(nn.Module):
    """A classifier behind a gate: a closed token shows it the mean of the training maps, which it standardises to 0.

    Args:
        classifier: With its statistics fitted.
        gate: Of as many tokens as the classifier's maps show; a token's channels, as `rgb` keeps them, share a gate.
    """

    def __init__(self, classifier: TDSMClassifier, gate: TokenGate):
        super().__init__()
        self.classifier, self.gate = classifier, gate

    def forward(self, maps: Maps, noise: Float[Tensor, "batch tokens"] | None = None) -> Logits:
        """Return class scores; without noise, from the tokens with the largest scores."""
        tokens = len(self.gate.scores)
        channels = maps.shape[-1] // tokens
        gates = self.gate(maps.new_zeros(len(maps), tokens) if noise is None else noise).repeat_interleave(
            channels, dim=1
        )[:, None, None]
        mean = self.classifier.mean
        return self.classifier(mean + gates * (maps - mean))


class GateLoss(nn.Module):
    """The cross-entropy of a classifier behind a gate, each sample with noise of its own."""

    def __init__(self, gated: GatedClassifier):
        super().__init__()
        self.gated = gated

    def forward(
        self, maps: Maps, labels: Int[Tensor, " batch"], noise: Float[Tensor, "batch tokens"]
    ) -> Float[Tensor, ""]:
        """Return the mean over samples."""
        return F.cross_entropy(self.gated(maps, noise), labels)


def learn_tokens(
    head: HeadConfig,
    num_tokens: int,
    count: int,
    train: Samples,
    validation: Samples,
    num_classes: int,
    config: ProbeConfig,
    seed: int,
    device: str,
) -> list[int]:
    """Train gates with heads, one for every learning rate and weight decay; return the tokens of the best one.

    The gates learn from training samples. Validation says which learning rate and weight decay are best.

    Args:
        num_tokens: Tokens that the maps show.
        count: Tokens to keep, fewer.

    Raises:
        NonFiniteError: If loss or weights are not finite.
    """
    statistics = statistics_for(head, train)
    found: list[tuple[float, list[int]]] = []
    for rate, decay in product(config.learning_rates, config.weight_decays):
        classifier = new_head(head, statistics, train, num_classes, seed)
        gated = GatedClassifier(classifier, TokenGate(num_tokens, count)).to(device)
        task = gate_task(gated, train, validation, config, seed, device, rate, decay)
        history = train_task(task, config, seed=seed)
        found.append((history[-1]["validation_accuracy"], gated.gate.chosen()))
    return max(found, key=lambda pair: pair[0])[1]


def gate_task(
    gated: GatedClassifier,
    train: Samples,
    validation: Samples,
    config: ProbeConfig,
    seed: int,
    device: str,
    rate: float,
    decay: float,
) -> Task:
    """Describe the training of a gate and its head for the engine.

    The head learns alone on random draws at first, so that no token wins for having been open early.
    """
    order = Order(len(train.features), config.batch_size, seed, purpose="head order", keeps_rest=True)
    steps, warmup = config.epochs * order.per_epoch, int(WARMUP * config.epochs) * order.per_epoch

    def inputs(step: int, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        taken = order(step)[0]
        noise = gumbel(len(taken), len(gated.gate.scores), generator(seed, "token gate", step))
        features, labels = train.features[taken[rows]], train.labels[taken[rows]]
        return features.to(device), labels.to(device), noise[rows].to(device)

    head = {"params": list(gated.classifier.parameters()), "name": "head", "peak": rate, "weight_decay": decay}
    gate = {"params": list(gated.gate.parameters()), "name": "gate", "peak": SCORE_RATE, "weight_decay": 0.0}
    return Task(
        name=f"token gate at learning rate {rate}",
        model=gated,
        loss=GateLoss(gated),
        size=order.size,
        inputs=inputs,
        groups=[head, gate],
        rate=partial(warmup_cosine, steps=steps, warmup=0),
        phases=(Phase(warmup, still=("gate",)), Phase(steps - warmup)),
        validate=lambda judged: {"validation_accuracy": accuracy_of(judged, validation, device)},
        validate_every=steps,
        checkpoint_every=steps,
        remedy=lambda _: "Set --probe.learning-rates lower.",
        blocks=(gated.classifier.head,),
    )


def gumbel(samples: int, tokens: int, random: torch.Generator) -> Float[Tensor, "samples tokens"]:
    """Draw from Gumbel(0, 1)."""
    return -torch.empty(samples, tokens).exponential_(generator=random).log()
