"""Find a field's weights among the names of a file: wrappers put words before them, averages stand beside them.

module._orig_mod.to_channels.weight      as DistributedDataParallel and torch.compile name it
ema.to_channels.weight                   an exponential average, beside what was averaged or alone
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tdsm.base.errors import CheckpointError

Value = TypeVar("Value")

LAST = re.compile(r"((?:.*\.)?)(?:to_channels|to_logits)\.weight")  # every field has this weight, once
AVERAGE = re.compile(r"(^|[._])(ema|averaged?|swa)([._]|$)", re.IGNORECASE)
EXPECTED = ("", "model_state_dict.")


def choose_copy(names: Iterable[str], where: str) -> str:
    """Return what stands before the names of the weights to take: of several copies the average; "" if there is none.

    >>> choose_copy(["to_channels.weight"], "a.pt")
    ''

    Raises:
        CheckpointError: If there are several copies, and not just one of them is an average.
    """
    found = sorted({match[1] for name in names if (match := LAST.fullmatch(name))})
    chosen = found if len(found) < 2 else [prefix for prefix in found if AVERAGE.search(prefix)]
    if found and len(chosen) != 1:
        raise CheckpointError(
            f"{where}: holds {len(found)} copies of the weights, below {', '.join(map(repr, found))}. Expected one, or "
            "one that is called ema. Save the one that is meant in a file of its own."
        )
    prefix = chosen[0] if chosen else ""
    if prefix not in EXPECTED or len(found) > 1:
        others = f", not those below {', '.join(map(repr, set(found) - {prefix}))}" if len(found) > 1 else ""
        warnings.warn(f"{where}: the weights below {prefix!r} are taken{others}.", stacklevel=2)
    return prefix


def below(entries: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """Return the entries whose names start so, without it."""
    return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
