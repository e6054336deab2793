"""A run whose images are read from files is the run whose images are in memory, bit for bit."""

import json

import pytest

from tdsm.pipeline.folder import read_config
from tdsm.pipeline.stages import classify, evaluate, train
from tests.tinyrun import colour_arrays, content, finished, tiny, trained

EQUAL = ("field/model.safetensors", "features/**/*", "rows/*/seed-*", "scores/*/predictions.safetensors", "data/*")


@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
def test_a_run_on_mapped_images_is_the_run_on_images_in_memory(tmp_path, monkeypatch, augmented):
    monkeypatch.setattr("tdsm.data.pieces.BLOCK_BYTES", 13 * 360)
    source = {"source": str(colour_arrays(tmp_path / "colours.npz")), "max_train": None, "max_test": None}
    more = {"train__augment": {"crop": 1, "flip": True}, "probe__views": 1} if augmented else {}
    seen = []
    for limit in (256, 0):
        path = tmp_path / str(limit)
        data = source | {"memory_limit": limit, "cache": str(tmp_path / "cache")}
        run = trained(path, data=data, train__steps=5, probe__augment={"flip": True}, **more)
        classify(run, run.config.maps, run.config.probe)
        evaluate(finished(path))
        table = [
            {k: v for k, v in row.items() if k != "seconds"} for row in json.loads((path / "table.json").read_text())
        ]
        seen.append((content(path, *EQUAL), table, run.data.train.fingerprint()))
    assert len(seen[0][0]) > 20
    assert seen[0] == seen[1]
    assert len(list((tmp_path / "cache").glob("*/block-*"))) == 5


def test_where_images_are_kept_may_change_in_a_run_that_is_there(tmp_path):
    run = trained(tmp_path / "run", train__steps=1)
    config = tiny(train__steps=1, data__memory_limit=1, data__cache=str(tmp_path / "other"))
    again = train(run.path, config, lambda words: None, resume=True)
    assert read_config(run.path).data.memory_limit == 1
    assert again.field_hash == run.field_hash
