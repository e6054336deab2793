"""Hash pictures by their pixels."""

import hashlib
import json

import numpy as np
from jaxtyping import Int64, UInt8


def image_hashes(images: UInt8[np.ndarray, "samples channels height width"]) -> Int64[np.ndarray, "samples"]:
    """Hash each image's size and pixels: equal pictures have equal hashes, others hardly ever (8 bytes).

    >>> len(set(image_hashes(np.zeros((2, 1, 3, 3), dtype=np.uint8)).tolist()))
    1
    """
    start = hashlib.blake2b(json.dumps(images.shape[1:]).encode(), digest_size=8)
    hashes = np.empty(len(images), dtype="<i8")
    for row, image in enumerate(images):
        digest = start.copy()
        digest.update(np.ascontiguousarray(image).data)
        hashes[row] = np.frombuffer(digest.digest(), dtype="<i8")[0]
    return hashes.astype(np.int64)
