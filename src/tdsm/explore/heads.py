"""Fitted classifiers, and what they say of an image when some of its tokens are missing.

A head that reads tokens one by one, or a map a token, keeps its inputs: those of a missing token are blanked, which is
to say set to the mean of the training samples, where the head's standardisation makes them 0. Maps of decompositions
that look at all tokens are computed from the tokens that are left. A head that reads the decoded picture reads the
picture that the tokens left over decode to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.classification.heads import TDSMClassifier
from tdsm.classification.rows import ROWS
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.features.config import MapConfig
from tdsm.features.kinds import FEATURES, Encoded
from tdsm.models.field import NeuralField
from tdsm.pipeline.rows import fitted_rows, read_classifiers
from tdsm.pipeline.run import Run

BLANKED_AT_ONCE = 16  # tokens
SUM_TOLERANCE = 1e-3  # of class scores, in float32

Image = Float[Tensor, "1 channels height width"]
Tokens = Float[Tensor, "1 tokens token_width"]


class Evidence(NamedTuple):
    """Class scores of an image, and by how much each falls when a token is blanked."""

    scores: Float[Tensor, " classes"]
    blank: Float[Tensor, " classes"]  # scores with every token blanked
    falls: Float[Tensor, "tokens classes"]
    adds_up: bool  # scores = blank + Σ falls: each token has its own share, whichever others are there


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A fitted classifier, the field it was fitted to, and the features it reads."""

    name: str
    meaning: str
    field: NeuralField
    feature: str
    classifier: TDSMClassifier
    maps: MapConfig

    @property
    def reads_tokens(self) -> bool:
        """Whether each token has inputs of its own, which can be blanked."""
        kind = FEATURES[self.feature]
        return kind.is_map or kind.is_sequence

    @torch.no_grad()
    def scores(
        self, image: Image, tokens: Tokens, keep: Sequence[int] | None = None
    ) -> Float[Tensor, " classes"] | None:
        """Return class scores from the tokens kept, all of them for None.

        None is returned where nothing is left to read: a head of the decoded picture, and no token.
        """
        keep = list(range(tokens.shape[1])) if keep is None else list(keep)
        if self.reads_tokens:
            return self.classifier(self._inputs(image, tokens, keep))[0]
        return self.classifier(self._compute(image, tokens[:, keep], self.maps))[0] if keep else None

    @torch.no_grad()
    def evidence(self, image: Image, tokens: Tokens) -> Evidence | None:
        """Return by how much each class score falls when a token is blanked; None if no token has inputs of its own.

        For heads that are linear these are the tokens' shares of the score.
        """
        if not self.reads_tokens:
            return None
        inputs = self._inputs(image, tokens, list(range(tokens.shape[1])))
        of_token = self._places(tokens.shape[1], inputs)
        mean = self.classifier.mean.expand_as(inputs)
        scores, blank = self.classifier(inputs)[0], self.classifier(mean)[0]
        without = [
            self.classifier(torch.where(of_token[part], mean, inputs))
            for part in torch.arange(tokens.shape[1]).split(BLANKED_AT_ONCE)
        ]
        falls = scores - torch.cat(without)
        missed = (blank + falls.sum(0) - scores).abs().max()
        return Evidence(scores, blank, falls, bool(missed <= SUM_TOLERANCE * (1 + scores.abs().max())))

    def _inputs(self, image: Image, tokens: Tokens, keep: list[int]) -> Tensor:
        """Return the features of all tokens, those that are not kept blanked."""
        if FEATURES[self.feature].is_sequence:
            computed = self._compute(image, tokens, self.maps)
            return torch.where(
                _are_in(keep, tokens.shape[1], computed)[None, :, None, None], computed, self.classifier.mean
            )
        selected = select_tokens(tokens.shape[1], parse_selection(self.maps.selection))
        there = [place for place, token in enumerate(selected) if token in keep]
        selection = ",".join(str(keep.index(selected[place])) for place in there)
        if not there:
            height, width = self.classifier.size or self.maps.size or image.shape[2:]
            return self.classifier.mean.expand(1, height, width, -1)
        some = self._compute(image, tokens[:, keep], self.maps.model_copy(update={"selection": selection}))
        each = self.classifier.num_maps // len(selected)
        channels = torch.tensor([each * place + channel for place in there for channel in range(each)])
        inputs = self.classifier.mean.expand(*some.shape[:3], -1).clone()
        inputs[..., channels] = some
        return inputs

    def _compute(self, image: Image, tokens: Tokens, maps: MapConfig) -> Tensor:
        """Return the head's feature of tokens, in the precision it was fitted in."""
        encoded = Encoded(self.field, image, maps)
        vars(encoded)["tokens"] = tokens  # instead of those of the image
        kind = FEATURES[self.feature]
        computed = kind.compute(encoded).float()
        return computed.to(getattr(torch, maps.dtype)).float() if kind.is_map else computed

    def _places(self, num_tokens: int, inputs: Tensor) -> Tensor:
        """Tell which inputs are a token's, for each token."""
        if FEATURES[self.feature].is_sequence:
            return torch.eye(num_tokens, dtype=torch.bool, device=inputs.device)[:, :, None, None]
        selected = select_tokens(num_tokens, parse_selection(self.maps.selection))
        each = self.classifier.num_maps // len(selected)
        owners = torch.tensor(selected, device=inputs.device).repeat_interleave(each)
        return (owners == torch.arange(num_tokens, device=inputs.device)[:, None])[:, None, None, :]


def fitted_heads(run: Run) -> dict[str, FittedHead]:
    """Return the heads of a run that are fitted to its trained field, the first seed of each, by the row's name."""
    heads = {}
    image = run.data.test.floats([0]).to(run.device)
    with torch.no_grad():
        encoded = Encoded(run.field, image, run.config.maps)
        for name in fitted_rows(run):
            row = ROWS[name]
            if row.head is None or row.features is None or not row.is_trained:
                continue
            height, width, maps = FEATURES[row.features].compute(encoded).shape[1:]
            classifier = next(read_classifiers(run, name, (height, width, maps))).to(run.device).eval()
            heads[name] = FittedHead(name, row.meaning, run.field, row.features, classifier, run.config.maps)
    return heads


def _are_in(keep: list[int], num_tokens: int, like: Tensor) -> Tensor:
    """Tell of each token whether it is kept."""
    mask = torch.zeros(num_tokens, dtype=torch.bool, device=like.device)
    mask[keep] = True
    return mask
