"""The public names as a type checker, an editor and an importer see them."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tdsm
from tdsm.tokenfield import interface
from tests.test_architecture import loads

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = ("Error", "rning")
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


REFERENCE = re.findall(r"^::: (tdsm\.[\w.]+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
MODULES = {
    "tdsm.decomposition.measures": ["measures"],
    "tdsm.base.errors": [e for e in tdsm.__all__ if e[-5:] in KINDS],
}


def test_the_reference_lists_what_is_public():
    listed = [name for path in REFERENCE for name in MODULES.get(path, [path.rpartition(".")[2]])]
    assert sorted(listed) == sorted({*tdsm.__all__, *tdsm.adapters.__all__} - {"__version__", "adapters"})


@pytest.mark.parametrize("path", REFERENCE)
def test_what_the_reference_shows_is_what_is_imported(path):
    home, _, name = path.rpartition(".")
    if path in MODULES:
        module = import_module(path)
        assert all(getattr(tdsm, name) in (module, getattr(module, name, None)) for name in MODULES[path])
    else:
        place = tdsm if name in tdsm.__all__ else tdsm.adapters
        assert getattr(place, name) is getattr(import_module(home), name)


@pytest.mark.parametrize("name", tdsm.__all__)
def test_what_a_public_name_raises_is_public(name):
    text = inspect.getdoc(getattr(tdsm, name)) or ""
    assert set(re.findall(r"^ +(\w+(?:Error|Warning)): ", text, re.MULTILINE)) <= {*tdsm.__all__, "OSError"}


def test_every_name_that_the_pages_use_exists():
    used = {name for page in PAGES for name in re.findall(r"\btdsm\.([A-Za-z]\w*)\b(?!\.py)", page.read_text())}
    packages = {path.name.removesuffix(".py") for path in (ROOT / "src" / "tdsm").iterdir()}
    assert {"NeuralField", "adapters", "component_images", "load_field"} <= used
    assert used <= {*tdsm.__all__, *packages}


def test_a_model_is_asked_as_many_questions_as_is_said(field, tokens):
    methods = [name for name, value in vars(tdsm.TokenField).items() if "NotImplementedError" in source_of(value)]
    assert len(methods) == 7
    page = (ROOT / "docs" / "how-to" / "model.md").read_text()
    assert "It answers seven questions; these five are enough" in page
    assert "Implement the seven methods that raise" in inspect.getdoc(tdsm.TokenField)
    assert "Seven answers are asked of a model, five where" in " ".join(interface.__doc__.split())
    assert sorted(re.findall(r"^    def (\w+)\(self, ", page, re.MULTILINE)) == sorted(
        {*methods} - {"query_heads", "token_heads"}
    )


def source_of(value):
    return inspect.getsource(inspect.unwrap(value)) if inspect.isfunction(value) else ""


def test_the_package_alone_imports_nothing_heavy():
    for module in ("torch", "numpy", "pydantic", "importlib.metadata"):
        assert not loads(module, "-c", "import tdsm")
    assert not loads("torch", "-c", "import tdsm; tdsm.UsageError, tdsm.DataConfig, tdsm.MapConfig, tdsm.__version__")


def test_adapters_are_a_public_name_that_costs_nothing():
    assert not loads("torch", "-c", "from tdsm import adapters; adapters.__all__")
    assert all(hasattr(tdsm.adapters, name) for name in tdsm.adapters.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tdsm.adapters.nonsense  # noqa: B018
