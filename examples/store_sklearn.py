"""Classify from a store with scikit-learn: features are extracted once, then read as arrays.

    python examples/store_sklearn.py

Extracts pooled maps and tokens of the embedded digits by a small field that was not trained, so that it takes seconds;
`tdsm extract RUN` does the same with a run's field. Prints test accuracies.
"""

import tempfile
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tdsm
from tdsm.cli.main import run_command

config = tdsm.FieldConfig(channels=1, widths=(32,), num_latents=16, mapping_dim=8, cross_head_dim=8, self_head_dim=8)

with tempfile.TemporaryDirectory() as folder:
    tdsm.NeuralField(config).save_pretrained(Path(folder) / "field")
    words = f"extract {folder}/field --data.source digits --features tokens pooled --maps.cells 2 --to {folder}/store"
    assert run_command(words.split()) == 0

    store = tdsm.open_store(f"{folder}/store")
    for name in store.features:
        train, test = (store.numpy(name, split) for split in ("train", "test"))
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        classifier.fit(train.reshape(len(train), -1), store.labels("train"))
        accuracy = classifier.score(test.reshape(len(test), -1), store.labels("test"))
        print(f"{name}: {100 * accuracy:.1f} % of {len(test)} test images")
