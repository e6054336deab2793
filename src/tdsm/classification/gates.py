"""A gate that learns, together with a head, which n tokens the head should see."""

import math
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdsm.base.errors import NonFiniteError
from tdsm.base.randomness import derive_seed, generator
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.heads import Logits, Maps, TDSMClassifier, make_head
from tdsm.classification.probe import Samples, accuracy_of, channel_statistics, train_epoch

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
        seed: Decides the draws.
    """

    def __init__(self, num_tokens: int, count: int, seed: int):
        super().__init__()
        self.count = count
        self.scores = nn.Parameter(torch.zeros(num_tokens))
        self.noise = generator(seed, "token gate")

    def forward(self, batch: int) -> Float[Tensor, "batch tokens"]:
        """Return a gate of 0 or 1 for every sample and token."""
        scores = (self.scores - self.scores.mean()).expand(batch, -1)
        if self.training:
            draw = torch.empty(scores.shape).exponential_(generator=self.noise)
            scores = scores - draw.log().to(scores)
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

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        channels = maps.shape[-1] // len(self.gate.scores)
        gates = self.gate(len(maps)).repeat_interleave(channels, dim=1)[:, None, None]
        mean = self.classifier.mean
        return self.classifier(mean + gates * (maps - mean))


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
        NonFiniteError: If the loss is not finite.
    """
    statistics = channel_statistics(train)
    found: list[tuple[float, list[int]]] = []
    for rate, decay in product(config.learning_rates, config.weight_decays):
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "head"))
            height, width, maps = train.features.shape[1:]
            classifier = make_head(head, maps, num_classes, (height, width))
            classifier.fit_statistics(*statistics)
            gated = GatedClassifier(classifier, TokenGate(num_tokens, count, seed)).to(device)
            _train(gated, train, config, seed, device, rate, decay)
        found.append((accuracy_of(gated, validation, device), gated.gate.chosen()))
    return max(found, key=lambda pair: pair[0])[1]


def _train(
    gated: GatedClassifier, train: Samples, config: ProbeConfig, seed: int, device: str, rate: float, decay: float
) -> None:
    """Train the head alone on random draws at first, so that no token wins for having been open early."""
    groups = [
        {"params": gated.classifier.parameters(), "lr": rate, "weight_decay": decay},
        {"params": gated.gate.parameters(), "lr": SCORE_RATE, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    steps = config.epochs * math.ceil(len(train.features) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(config.epochs):
        gated.gate.requires_grad_(epoch >= int(WARMUP * config.epochs))
        order = torch.randperm(len(train.features), generator=generator(seed, "head order", epoch))
        loss = train_epoch(gated, train.batches(order, config.batch_size), optimizer, schedule, device)
        if not math.isfinite(loss):
            raise NonFiniteError(f"token gate: the loss is {loss} at learning rate {rate}.")
