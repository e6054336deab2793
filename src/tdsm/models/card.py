"""The card that stands beside saved weights: what the field is and how to use it, and its scores where they are known.

A run keeps in card/ what is known of its field; it counts only for exactly the weights it was written for.
"""

from pathlib import Path
from typing import Any

from tdsm.base import io
from tdsm.base.errors import CheckpointError

CARD_FOLDER, CARD_FILE = "card", "README.md"
UNKNOWN = "Training data and scores: as recorded by whoever trained it."
USE = """# A conditioned neural field

Turns an image into tokens and answers "what colour is here?" at any coordinate, by cross-attention to them.
Images are channels first, in [-1, 1]; `config.json` holds widths and counts.

    import tdsm
    field = tdsm.NeuralField.from_pretrained("THIS_REPOSITORY_OR_FOLDER")
    tokens = field.encode(images)
    components = tdsm.component_images(field, tokens, size=(32, 32))

`pip install tdsm`.
"""


def write_up(known: str = UNKNOWN) -> str:
    """Return the text of a card.

    >>> write_up("It is small.").splitlines()[-1]
    'It is small.'
    """
    return f"{USE}\n{known}\n"


def card_origin(field: Path) -> dict[str, Any]:
    """Name the weights that a card is about: those of a field's folder."""
    return {"field": {name: entry["sha256"] for name, entry in io.read_manifest(field).files.items()}}


def kept_card(run: Path, field: Path) -> str | None:
    """Return the card that a run keeps of its field; None if there is none, or it is of other weights."""
    try:
        folder = run / CARD_FOLDER
        if io.verify_folder(folder, holds=[CARD_FILE]).made_from != card_origin(field):
            return None
        return (folder / CARD_FILE).read_text(encoding="utf-8")
    except CheckpointError:
        return None
