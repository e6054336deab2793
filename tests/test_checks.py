"""The checkers can fail: each is given something wrong and must say so."""

import jaxtyping
import pytest
import torch

from tdsm.decomposition.definition import loop
from tdsm.tokenfield.attention import FeedForward
from tdsm.tokenfield.coords import FourierFeatures
from tests.conftest import small_field
from tests.test_architecture import IMPORTER, WRITER, loads, tree_difference, violations


@pytest.mark.parametrize(
    "call",
    [
        lambda: FourierFeatures(2, 4, 1.0)(torch.zeros(3, 2, dtype=torch.long)),  # integers, not floats
        lambda: FeedForward(4, 2)([0.0] * 4),  # no tensor at all
        lambda: loop(small_field(), torch.zeros(5, 14).double(), torch.zeros(3, 16).double()),  # an axis is missing
        lambda: small_field().encode_points(torch.zeros(2, 4, 3).double(), torch.zeros(5, 2)),  # 4 points, then 5
    ],
    ids=["dtype", "type", "rank", "axis"],
)
def test_shapes_in_signatures_are_checked_in_tests(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle.loads"),
        ("import joblib as j", "imports joblib"),
        ("eval('1')", "calls eval"),
        ("exec('1')", "calls exec"),
        ("__import__('os')", "calls __import__"),
        ("import torch\ntorch.save({}, path)", "calls torch.save"),
        ("import torch as t\nt.save({}, path)", "calls torch.save"),
        ("from torch import save\nsave({}, path)", "calls torch.save"),
        ("import torch\ntorch.load(path, weights_only=True)", "calls torch.load"),
        ("import yaml\nyaml.load(text)", "calls yaml.load"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "unpickles or trusts remote code"),
        ("datasets.load_dataset(name, trust_remote_code=True)", "unpickles or trusts remote code"),
        ("open(path, 'w')", "writes by open"),
        ("open(path, mode='ab')", "writes by open"),
        ("open(path, mode)", "writes by open"),
        ("path.open('r+')", "writes by path.open"),
        ("path.write_text('a')", "writes by path.write_text"),
        ("(a / b).write_bytes(b'')", "writes by ?.write_bytes"),
        ("import os\nos.replace(a, b)", "writes by os.replace"),
        ("from shutil import move\nmove(a, b)", "writes by shutil.move"),
    ],
)
def test_the_scan_finds_what_is_planted(text, found):
    assert violations(text, "somewhere.py") == [found]


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "import re\nre.compile('a')",
        "open(path)",
        "open(path, 'rb')",
        "path.open()",
        "from tdsm.base import io\nio.write_text(path, 'a')",
        "from PIL import Image\nImage.open(file)",
        "import os\nos.open(path, os.O_RDONLY)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
    ],
)
def test_the_scan_leaves_alone_what_may_be(text):
    assert violations(text, "somewhere.py") == []


def test_the_importer_may_load_weights_only():
    assert violations("import torch\ntorch.load(path, weights_only=True)", IMPORTER) == []
    assert violations("import torch\ntorch.load(path, weights_only=False)", IMPORTER) == ["calls torch.load"]
    assert violations("import torch\ntorch.load(path)", IMPORTER) == ["calls torch.load"]
    assert violations("open(path, 'wb')", WRITER) == []


def test_an_imported_package_is_seen():
    assert loads("json", "-c", "import json.decoder")
    assert not loads("json", "-c", "import re")


TREE = """
```
src/tdsm/
  top.py      what it is | side.py
  part/       inner.py (a) | other.py
              third.py
  all/        everything here (see there)
tests/        not_here.py
```
"""


@pytest.mark.parametrize(
    ("missing", "extra", "expected"),
    [
        (None, None, (set(), set())),
        ("side.py", None, ({"side.py"}, set())),
        ("part/third.py", None, ({"part/third.py"}, set())),
        (None, "new.py", (set(), {"new.py"})),
        (None, "part/new.py", (set(), {"part/new.py"})),
        (None, "all/new.py", (set(), set())),
    ],
)
def test_a_readme_tree_that_is_not_the_disk_is_noticed(tmp_path, missing, extra, expected):
    there = {"top.py", "side.py", "part/inner.py", "part/other.py", "part/third.py", "all/a.py", "__init__.py"}
    for name in (there - {missing}) | ({extra} if extra else set()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert tree_difference(TREE, tmp_path) == expected
