"""Weights and config on disk and on the hub: written as safetensors, read strictly, sizes before anything is built."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from pydantic import ValidationError
from torch import Tensor, nn

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.base.settings import wrong_entries
from tdsm.models.card import write_up
from tdsm.models.config import FieldConfig
from tdsm.models.copies import below, choose_copy

Saved = TypeVar("Saved", bound="SavedField")

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_CARD = "---\n{{ card_data }}\n---\n\n{{ text | default('', true) }}\n"


class SavedField(
    ModelHubMixin, library_name="tdsm", tags=["neural-field"], license="mit", model_card_template=MODEL_CARD
):
    """A field that is saved to a folder or the hub and restored: save_pretrained, push_to_hub, from_pretrained."""

    config: FieldConfig
    _card: tuple[str, str] | None = None  # what is known of exactly these weights, and their hash

    def describe(self, card: str) -> None:
        """Let `save_pretrained` write this card, as long as the weights stay as they are now."""
        self._card = card, _hash_of(self.state_dict())  # type: ignore[attr-defined]

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card that stands beside the weights: with scores, if a run knows them."""
        known = self._card is not None and self._card[1] == _hash_of(self.state_dict())  # type: ignore[attr-defined]
        text = self._card[0] if known and self._card is not None else write_up()
        return super().generate_model_card(*args, **kwargs, text=text)

    def write(self, folder: Path) -> None:
        """Write weights and config into a folder, as `save_pretrained` does, without a model card."""
        io.write_tensors(folder / WEIGHTS_FILE, self.state_dict(), metadata={"format": "pt"})  # type: ignore[attr-defined]
        io.write_json(folder / CONFIG_FILE, self.config.model_dump(mode="json"))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.write(Path(save_directory))

    @classmethod
    def from_pretrained(
        cls: type[Saved], pretrained_model_name_or_path: str | Path, *, map_location: str = "cpu", **options: Any
    ) -> Saved:
        """Load a saved field from a folder or the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, or a repository of the hub.
            map_location: Device to put the field on.
            options: For the hub: revision, cache_dir, force_download, local_files_only, token.

        Raises:
            CheckpointError: If nothing is there, or config and weights are damaged or do not fit each other.
        """
        where = str(pretrained_model_name_or_path)
        find = Path(where).joinpath if Path(where).is_dir() else partial(_download, where, **options)
        config = parse_config(io.read_json(find(CONFIG_FILE)), where=f"{where}/{CONFIG_FILE}")
        weights = find(WEIGHTS_FILE)
        shapes = io.read_shapes(weights)
        prefix = choose_copy(shapes, where)
        cls.check_sizes(config, below(shapes, prefix), where)
        return cls.from_state(config, below(io.read_tensors(weights), prefix), where).to(map_location)  # type: ignore[attr-defined]

    @classmethod
    def from_state(cls: type[Saved], config: FieldConfig, state: dict[str, Tensor], where: str) -> Saved:
        """Build a field from its config and exactly its weights; anything missing or unexpected is an error."""
        cls.check_sizes(config, {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
        field: Any = cls(config)  # type: ignore[call-arg]
        load_strictly(field, state, where)
        return field.eval()

    @classmethod
    def check_sizes(cls, config: FieldConfig, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
        """Refuse a config that these weights are not of, before anything of its size is built.

        Raises:
            CheckpointError: It names sizes beyond every weight, or lists what is missing, unexpected or misshapen.
        """
        largest = max((size for shape in shapes.values() for size in shape), default=0)
        sizes = {name: max(value) if isinstance(value, tuple) else value for name, value in config}
        beyond = {name: size for name, size in sizes.items() if type(size) is int and size > largest}
        blocks = max(config.processor_depth, len(config.widths))
        if beyond or blocks > len(shapes):
            said = ", ".join(f"{name} = {size}" for name, size in beyond.items()) or f"{blocks} blocks"
            raise CheckpointError(
                f"{where}: the config says {said}, but the weights are {len(shapes)} tensors with no axis longer than "
                f"{largest}. It is the config of another field."
            )
        with torch.device("meta"):
            own: Any = cls(config)  # type: ignore[call-arg]
        _compare({name: tuple(tensor.shape) for name, tensor in own.state_dict().items()}, shapes, where)


def _hash_of(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load weights into a module.

    Raises:
        CheckpointError: It lists every weight that is missing, unexpected, of another shape, or not finite.
    """
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    _compare(own, {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
    broken = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{where}: weights are infinite or not a number in {', '.join(sorted(broken))}. The training that wrote "
            "them had broken down; take an earlier checkpoint."
        )
    module.load_state_dict(state)


def _compare(own: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str) -> None:
    both = sorted(own.keys() & given.keys())
    wrong = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": [
            f"{name} {given[name]} instead of {own[name]}" for name in both if own[name] != given[name]
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{word}: {', '.join(names)}" for word, names in wrong.items() if names)
        raise CheckpointError(f"{where}: the weights do not fit this model. {listed}.")


def parse_config(data: object, where: str) -> FieldConfig:
    """Check a config read from a file; raise `CheckpointError` naming each wrong entry."""
    try:
        return FieldConfig.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise CheckpointError(f"{where}: not the config of a field. {wrong_entries(error)}.") from None


def count_parameters(module: nn.Module) -> int:
    """Count all weights of a module, trained or fixed."""
    return sum(parameter.numel() for parameter in module.parameters())


def _download(repository: str, name: str, **options: Any) -> Path:
    try:
        return Path(hf_hub_download(repository, name, **options))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{repository}: no such folder, and {name} cannot be had from the hub ({reason})"
        ) from None
