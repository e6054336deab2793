"""Arrays as the page reads them: a header of JSON, then the numbers, little-endian.

4 bytes: length of the header   |   header, padded with spaces to a multiple of 4   |   float32 of every array
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def pack(facts: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> bytes:
    """Pack facts and arrays into one answer; `arrays` of the header gives names and shapes in the order of the bytes.

    >>> import torch
    >>> pack({"a": 1}, {"x": torch.ones(2)})[4:]
    b'{"a": 1, "arrays": [["x", [2]]]}\\x00\\x00\\x80?\\x00\\x00\\x80?'
    """
    shapes = [[name, list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({**facts, "arrays": shapes}, allow_nan=False).encode()
    header += b" " * (-len(header) % 4)
    bodies = (
        np.ascontiguousarray(array.detach().float().cpu().numpy(), dtype="<f4").tobytes() for array in arrays.values()
    )
    return b"".join([len(header).to_bytes(4, "little"), header, *bodies])
