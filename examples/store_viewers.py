"""Look at a store in Embedding Atlas or FiftyOne: both read Parquet, or what is made of it in a few lines.

    python examples/store_viewers.py [FOLDER]

Extracts pooled maps of the embedded digits by a small field that was not trained to a Parquet store, and writes
FOLDER/atlas.parquet: id, class, the features as a vector, and two principal components to draw. Then

    embedding-atlas FOLDER/atlas.parquet --x x --y y --text class

shows it. With FiftyOne installed, its data set is made too. Prints what was made.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tdsm
from tdsm.cli.main import run_command

config = tdsm.FieldConfig(channels=1, widths=(32,), num_latents=16, mapping_dim=8, cross_head_dim=8, self_head_dim=8)

with tempfile.TemporaryDirectory() as scratch:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
    tdsm.NeuralField(config).save_pretrained(Path(scratch) / "field")
    words = f"extract {scratch}/field --data.source digits --features pooled --format parquet --to {folder}/store"
    assert run_command(words.split()) == 0

    table = pq.read_table(folder / "store" / "test")  # a folder of plain Parquet files
    vectors = table["pooled"].combine_chunks().to_numpy_ndarray().reshape(len(table), -1).astype(np.float32)
    centred = vectors - vectors.mean(axis=0)
    x, y = (centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T).T
    shown = pa.table({"id": table["id"], "class": table["class"], "x": x, "y": y, "vector": list(vectors)})
    pq.write_table(shown, folder / "atlas.parquet")
    print(f"atlas.parquet: {len(shown)} samples, vectors of {vectors.shape[1]}")

    if find_spec("fiftyone"):
        import fiftyone as fo

        dataset = fo.Dataset()
        dataset.add_samples(
            fo.Sample(
                filepath=f"{row['id']}.png", label=fo.Classification(label=row["class"]), pooled=np.array(row["vector"])
            )
            for row in shown.to_pylist()
        )
        print(f"FiftyOne: {len(dataset)} samples")
