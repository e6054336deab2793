"""Find a field wherever it is kept."""

from pathlib import Path

from tdsm.base.errors import CheckpointError, UsageError
from tdsm.models.adapters.published import load_published
from tdsm.models.card import kept_card
from tdsm.models.field import NeuralField
from tdsm.models.weights import CONFIG_FILE, WEIGHTS_FILE

FIELD_FOLDER = "field"


def load_field(path: str | Path, *, cross_heads: int = 4, self_heads: int = 8) -> NeuralField:
    """Load a trained field, in evaluation mode, on the CPU.

    Of a run with a report, `save_pretrained` writes the scores into the model card.

    Args:
        path: A run folder, a folder written by `save_pretrained`, a published `.pt` checkpoint, or a `.safetensors`
            file of weights.
        cross_heads: Heads of the cross-attentions; read for published checkpoints only, which do not say.
        self_heads: Heads of the self-attentions; read for published checkpoints only.

    Raises:
        CheckpointError: If there is no field there, or its weights do not fit exactly.
    """
    path = Path(path).expanduser()
    if path.name == WEIGHTS_FILE and path.with_name(CONFIG_FILE).is_file():
        path = path.parent
    if path.is_file():
        return load_published(path, cross_heads=cross_heads, self_heads=self_heads)
    if (cross_heads, self_heads) != (4, 8):
        raise UsageError(
            f"load_field: {path} is a folder, which knows its head counts; leave cross_heads and self_heads."
        )
    for folder in (path / FIELD_FOLDER, path):
        if (folder / CONFIG_FILE).is_file():
            field = NeuralField.from_pretrained(str(folder))
            if (card := kept_card(path, folder)) is not None:
                field.describe(card)
            return field
    raise CheckpointError(
        f"{path}: no field found. Expected a run folder (with {FIELD_FOLDER}/{CONFIG_FILE}), a folder written by "
        f"save_pretrained (with {CONFIG_FILE} and {WEIGHTS_FILE}), a published .pt checkpoint, or a .safetensors file."
    )
