"""What README.md and examples/ show works as shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tdsm.cli.verbs import VERBS
from tdsm.decomposition import DECOMPOSITIONS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_python_of_the_readme_gives_the_shapes_it_states():
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names: dict = {}
    exec(block, names)
    shapes = {name: tuple(names[name].shape) for name in ("tokens", "recon", "comps", "maps")}
    assert shapes == {
        "tokens": (2, 64, 512),
        "recon": (2, 48, 40, 3),
        "comps": (2, 2, 32, 32, 3),
        "maps": (2, 32, 32, 64),
    }
    stated = dict(re.findall(r"^(\w+) += .*# \(2, ([\d, ]+)\)", block, re.MULTILINE))
    assert {name: str(shape) for name, shape in shapes.items() if name in stated} == {
        name: f"(2, {rest})" for name, rest in stated.items()
    }
    assert names["parts"].completeness_error.max() < 1e-2


def test_every_verb_of_the_readme_exists():
    shown = set(re.findall(r"^tdsm (\w+)", README, re.MULTILINE))
    assert shown <= VERBS.keys()
    assert {"demo", "train", "classify", "evaluate", "report"} <= shown


def test_the_readmes_table_of_decompositions_is_the_registry():
    table = re.search(r"\| `method=` .*?\n\n", README, re.DOTALL)[0]
    said = re.findall(r"^\| `(\w+)` \| .* \| (yes|no)\b[^|]*\|$", table, re.MULTILINE)
    assert said == [(name, "yes" if method.adds_up else "no") for name, method in DECOMPOSITIONS.items()]


ARGUMENTS = {"mixture_objects": ("3", "20", "1")}  # of those that take minutes otherwise


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs(path, tmp_path):
    command = [sys.executable, path, *ARGUMENTS.get(path.stem, ())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
