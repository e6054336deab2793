"""What the study of worth classifies from: the features of the trained field, and some of the untrained one."""

from dataclasses import dataclass

from tdsm.features.kinds import FEATURES, FeatureKind


@dataclass(frozen=True)
class Asked:
    """A feature of the run's field, trained or as it was before training."""

    feature: str  # a name in FEATURES
    is_trained: bool = True

    @property
    def kind(self) -> FeatureKind:
        """How it is computed and what it is."""
        return FEATURES[self.feature]

    @property
    def meaning(self) -> str:
        """What it is, in words."""
        decoded, before = "decoded: " * self.kind.is_decoded, ", of the field before training" * (not self.is_trained)
        return f"{decoded}{self.kind.meaning}{before}"


ASKED: dict[str, Asked] = {
    **{name: Asked(name) for name in ("solo", "additive", "leave_one_out", "attention", "additive+attention")},
    **{name: Asked(name) for name in ("tokens", "values")},
    **{name: Asked(name) for name in ("random_expansion", "reconstruction", "pixels")},
    "untrained-solo": Asked("solo", is_trained=False),
    "untrained-tokens": Asked("tokens", is_trained=False),
}
