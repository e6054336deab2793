"""The 1797 handwritten digits embedded in scikit-learn: 8×8, grey, 17 levels."""

import numpy as np

from tdsm.base.errors import UsageError
from tdsm.data.config import DataConfig
from tdsm.data.source import Source, array_source


def load_digits(where: str, config: DataConfig) -> Source:
    """Load the digits, levels 0..16 scaled to 0..255. They have no test split."""
    from sklearn import datasets

    if where:
        raise UsageError(f"source 'digits:{where}': digits are built in, expected 'digits' alone.")
    digits = datasets.load_digits()
    return array_source({"train": np.rint(digits.images * (255 / 16)).astype(np.uint8)}, {"train": digits.target})
