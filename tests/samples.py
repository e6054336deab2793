"""Small data sets as people have them, written by tests."""

import io
import json

import numpy as np
from PIL import Image

from tdsm.data import DataConfig, load_data

PETS = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}


def picture(level, shape=(4, 4), kind="PNG"):
    handle = io.BytesIO()
    Image.fromarray(np.full(shape, level, np.uint8)).save(handle, kind)
    return handle.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def load(source, seed=0, **options):
    return load_data(DataConfig(source=str(source), **options), seed)


def assert_sound(data):
    """Every set is non-empty and shares classes and shape; sets of one split never share an id."""
    sets = (data.train, data.validation, data.test)
    assert all(len(part) for part in sets)
    assert len({part.classes for part in sets}) == 1
    assert len({(part.channels, part.size) for part in sets}) == 1


def all_floats(images):
    return images.floats(range(len(images)))


def levels(images):
    """Return the level each plain picture was made of."""
    return images.images[:, 0, 0, 0].tolist()


def fill(root, splits=("",), classes=("cat2", "cat10", "ant"), count=10, first=0):
    """Write ROOT/SPLIT/CLASS/img0.png ..., the level saying which image of which class it is."""
    for split in splits:
        for label, name in enumerate(classes):
            for i in range(count):
                write(root / split / name / f"img{i}.png", picture(first + 10 * i + label))


def table(images, labels, features=None, **more):
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([image if isinstance(image, dict) else {"bytes": image, "path": None} for image in images], kind)
    built = pa.table({"img": cells, **({} if labels is None else {"label": labels}), **more})
    if features:
        built = built.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return built


def save(path, built, **options):
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(built, path, **options)


def pets(first, count, kind="PNG"):
    """Return a table of cats and dogs in turn, of levels from `first` on."""
    labels = [i % 2 for i in range(count)]
    return table([picture(first + i, kind=kind) for i in range(count)], labels, PETS)
