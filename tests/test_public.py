"""The public names as a type checker, an editor and an importer see them."""

import subprocess
import sys
from pathlib import Path

import pytest

import tdsm
from tests.test_architecture import loads

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".mypy_cache" / "public"  # reading torch takes long, once
USE = """
from pathlib import Path
import torch
import tdsm
from tdsm import adapters

field = tdsm.NeuralField(tdsm.FieldConfig(widths=(8,), num_latents=4))
restored: tdsm.NeuralField = tdsm.NeuralField.from_pretrained("somewhere")
found: tdsm.TokenField = tdsm.load_field(Path("run"))
tokens = field.encode(torch.zeros(1, 3, 8, 8))
maps = tdsm.spatial_map(field, tokens, size=(4, 4), reduction="mean")
pooled = tdsm.pooled_map(field, tokens, (4, 4), pool="max", cells=2)
parts = tdsm.decompose(field, tokens, (4, 4), method="additive", points=5)
error: float = parts.completeness_error.max().item()
scores = tdsm.TDSMClassifier(num_tokens=4, num_classes=10, pool="flatten", size=(4, 4), hidden_dim=8)(maps)
chosen: list[int] = tdsm.select_tokens(16, "stride:4")
old: tdsm.NeuralField = adapters.load_published(Path("a.pt"))
foreign: type[tdsm.TokenField] = adapters.PerceiverIOField
"""
WRONG = {
    "tdsm.decompos": 'has no attribute "decompos"',
    "adapters.PerceiverField": 'has no attribute "PerceiverField"',
    "tdsm.spatial_map(field, tokens, reducton='mean')": 'Unexpected keyword argument "reducton"',
    "tdsm.spatial_map(field, tokens, (4, 4), reduction=3)": 'incompatible type "int"; expected "str"',
    "tdsm.component_images(tokens, field, (4, 4))": 'incompatible type "NeuralField"; expected "Tensor"',
    "tdsm.TDSMClassifier(4)": 'Missing positional argument "num_classes"',
    "tdsm.FieldConfig(num_latens=4)": 'Unexpected keyword argument "num_latens"',
    "parts.component": 'has no attribute "component"',
    "tdsm.load_field(3)": 'incompatible type "int"',
    "field.encode('picture')": 'incompatible type "str"',
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """What mypy, as a user runs it, has to say: of the right program, and of each wrong line added to it."""
    folder = tmp_path_factory.mktemp("typed")
    wrong = "\n".join(["import torch", USE, *WRONG]) + "\n"
    (folder / "right.py").write_text(USE)
    (folder / "wrong.py").write_text(wrong)
    (folder / "mypy.ini").write_text("[mypy]\nignore_missing_imports = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", CACHE, "right.py", "wrong.py"]
    environment = {"MYPYPATH": str(ROOT / "src"), "PATH": "", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    lines = wrong.splitlines()
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        file, _, rest = line.partition(":")
        number, _, words = rest.partition(":")
        if file in ("right.py", "wrong.py") and "error" in words:
            found.setdefault(lines[int(number) - 1] if file == "wrong.py" else file, []).append(words)
    return found


def test_a_program_that_uses_the_public_names_is_typed(complaints):
    assert complaints.keys() == WRONG.keys()


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_use_is_seen_by_a_type_checker(complaints, call):
    assert any(WRONG[call] in words for words in complaints[call])


def test_the_marker_of_typed_packages_is_shipped():
    assert (ROOT / "src" / "tdsm" / "py.typed").read_text() == ""


def test_adapters_are_a_public_name_that_costs_nothing():
    assert not loads("torch", "-c", "from tdsm import adapters; adapters.__all__")
    assert all(hasattr(tdsm.adapters, name) for name in tdsm.adapters.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tdsm.adapters.nonsense  # noqa: B018
