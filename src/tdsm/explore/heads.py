"""Fitted classifiers, and what they say of an image when some of its tokens are missing.

A head that reads tokens one by one, or a map a token, keeps its inputs: those of a missing token are blanked, which is
to say set to the mean of the training samples, where the head's standardisation makes them 0. Maps of decompositions
that look at all tokens are computed from the tokens that are left. A head that reads the decoded picture reads the
picture that the tokens left decode to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdsm.classification.heads import TDSMClassifier
from tdsm.classification.rows import ROWS
from tdsm.decomposition.reduce import num_maps
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.features.config import MapConfig
from tdsm.features.kinds import FEATURES, Encoded, FeatureKind
from tdsm.models.field import NeuralField
from tdsm.pipeline.rows import fitted_rows, read_classifiers
from tdsm.pipeline.run import Run

BLANKED_AT_ONCE = 16  # tokens
SUM_TOLERANCE = 1e-3  # of class scores, in float32

Image = Float[Tensor, "1 channels height width"]
Tokens = Float[Tensor, "1 tokens token_width"]
Maps = Float[Tensor, "1 rows columns maps"]


class Falls(NamedTuple):
    """Class scores of an image, and by how much each falls when a token is blanked.

    Where they add up they are the tokens' shares of the scores, and less their mean over classes what `class_evidence`
    says of each map in all.
    """

    scores: Float[Tensor, " classes"]
    blank: Float[Tensor, " classes"]  # scores with everything blanked
    by_token: Float[Tensor, "tokens classes"]
    adds_up: bool  # scores = blank + Σ by_token: each token has its own share, whichever others are there


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
        if not keep and not self.reads_tokens:
            return None
        return self.classifier(self.inputs(image, tokens, keep))[0]

    @torch.no_grad()
    def falls(self, image: Image, tokens: Tokens) -> Falls | None:
        """Return by how much each class score falls when a token is blanked; None if none has inputs of its own."""
        if not self.reads_tokens:
            return None
        count = tokens.shape[1]
        inputs = self.inputs(image, tokens, list(range(count)))
        mean, of_token = self.classifier.mean.expand_as(inputs), self.places(count, image.shape[1])
        scores, blank = self.classifier(inputs)[0], self.classifier(mean)[0]
        parts = torch.arange(count).split(BLANKED_AT_ONCE)
        without = torch.cat([self.classifier(torch.where(of_token[part], mean, inputs)) for part in parts])
        missed = (blank + (scores - without).sum(0) - scores).abs().max()
        is_sum = bool(missed <= SUM_TOLERANCE * (1 + scores.abs().max()))
        return Falls(scores, blank, scores - without, is_sum)

    def inputs(self, image: Image, tokens: Tokens, keep: list[int]) -> Maps:
        """Return what the head reads of the tokens kept; what is missing of it is blanked."""
        blank, start, parts = self.classifier.mean, 0, []
        for kind, channels in self._parts(tokens.shape[1], image.shape[1]):
            channels = channels or blank.shape[-1]
            parts.append(self._part(kind, image, tokens, keep, blank[..., start : start + channels]))
            start += channels
        height, width = max((part.shape[1:3] for part in parts), key=lambda size: size[0] * size[1])
        return torch.cat([part.expand(1, height, width, -1) for part in parts], dim=-1)

    def places(self, num_tokens: int, channels: int) -> Bool[Tensor, "tokens #rows 1 #maps"]:
        """Tell which inputs are a token's, for each token."""
        device = self.classifier.mean.device
        each = torch.arange(num_tokens, device=device)
        if FEATURES[self.feature].is_sequence:
            return (each == each[:, None])[:, :, None, None]
        owners = [self._owners(kind, num_tokens, count) for kind, count in self._parts(num_tokens, channels)]
        return (torch.cat(owners).to(device) == each[:, None])[:, None, None, :]

    def _parts(self, num_tokens: int, channels: int) -> Iterator[tuple[FeatureKind, int]]:
        """List what the head reads side by side, with the number of channels; 0 for all there are."""
        kind = FEATURES[self.feature]
        of_map = num_maps(len(self._selected(num_tokens)), channels, self.maps.reduction)
        for part in kind.parts or (kind,):
            yield part, (of_map if part.is_map else channels) if kind.parts else 0

    def _part(self, kind: FeatureKind, image: Image, tokens: Tokens, keep: list[int], blank: Tensor) -> Maps:
        if kind.is_sequence:
            computed = self._compute(kind, image, tokens, self.maps)
            is_kept = torch.zeros(tokens.shape[1], dtype=torch.bool, device=blank.device)
            is_kept[keep] = True
            return torch.where(is_kept[:, None, None], computed, blank)
        selected = self._selected(tokens.shape[1])
        there = [place for place, token in enumerate(selected) if token in keep] if kind.is_map else keep
        if not there:
            height, width = self.classifier.size or self.maps.size or image.shape[2:]
            return blank.expand(1, height, width, -1)
        if not kind.is_map:
            return self._compute(kind, image, tokens[:, keep], self.maps)
        selection = ",".join(str(keep.index(selected[place])) for place in there)
        maps = self.maps.model_copy(update={"selection": selection})
        some = self._compute(kind, image, tokens[:, keep], maps)
        each = blank.shape[-1] // len(selected)
        inputs = blank.expand(*some.shape[:3], -1).clone()
        inputs[..., [each * place + channel for place in there for channel in range(each)]] = some
        return inputs

    def _compute(self, kind: FeatureKind, image: Image, tokens: Tokens, maps: MapConfig) -> Maps:
        """Return a feature of tokens, in the precision it was stored in."""
        encoded = Encoded(self.field, image, maps)
        vars(encoded)["tokens"] = tokens  # instead of those of the image
        computed = kind.compute(encoded).float()
        is_rounded = FEATURES[self.feature].is_map
        return computed.to(getattr(torch, maps.dtype)).float() if is_rounded else computed

    def _owners(self, kind: FeatureKind, num_tokens: int, count: int) -> Tensor:
        """Name the token of each channel, −1 where it is of none."""
        count, selected = count or self.classifier.num_maps, self._selected(num_tokens)
        if not kind.is_map:
            return torch.full((count,), -1)
        return torch.tensor(selected).repeat_interleave(count // len(selected))

    def _selected(self, num_tokens: int) -> list[int]:
        return select_tokens(num_tokens, parse_selection(self.maps.selection))


def fitted_heads(run: Run) -> dict[str, FittedHead]:
    """Return the heads of a run that are fitted to its trained field, the first seed of each, by the row's name.

    Those that read the tokens' maps come first.
    """
    heads = {}
    encoded = Encoded(run.field, run.data.test.floats([0]).to(run.device), run.config.maps)
    with torch.no_grad():
        for name in sorted(fitted_rows(run), key=lambda name: ROWS[name].role != "tdsm"):
            row = ROWS[name]
            if row.head is None or row.features is None or not row.is_trained:
                continue
            height, width, maps = FEATURES[row.features].compute(encoded).shape[1:]
            classifier = next(read_classifiers(run, name, (height, width, maps))).to(run.device).eval()
            heads[name] = FittedHead(name, row.meaning, run.field, row.features, classifier, run.config.maps)
    return heads
