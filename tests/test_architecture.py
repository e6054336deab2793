"""What the source as a whole keeps to: layers, no code from data, one writer, quick start, README tree = disk."""

import ast
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tdsm"

# ---------------------------------------------------------------- layers


def lint_imports(folder):
    """Check the layers of the package under `folder`/tdsm against the project's contract."""
    command = [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / ".importlinter", "--no-cache"]
    environment = {"PYTHONPATH": str(folder), "PATH": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_a_file_imports_only_what_stands_below_it():
    code, output = lint_imports(SOURCE.parent)
    assert code == 0, output
    assert "1 kept, 0 broken" in output


@pytest.mark.parametrize(
    ("low", "high"),
    [("base/errors", "models.field"), ("tokenfield/coords", "classification"), ("decomposition/exact", "training")],
)
def test_an_import_from_above_is_noticed(tmp_path, low, high):
    shutil.copytree(SOURCE, tmp_path / "tdsm", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "tdsm" / f"{low}.py"
    file.write_text(file.read_text() + f"\nimport tdsm.{high}\n")
    code, output = lint_imports(tmp_path)
    assert code != 0
    assert f"tdsm.{low.replace('/', '.')} -> tdsm.{high}" in output


# ---------------------------------------------------------------- what no file may do

WRITER, IMPORTER = "base/io.py", "models/adapters/published.py"
CODE_FROM_DATA = {"eval", "exec", "compile", "__import__", "torch.save", "yaml.load", "yaml.unsafe_load", "numpy.save"}
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
RENAMES = {"os.replace", "os.rename", "os.renames", "shutil.move", "shutil.copy", "shutil.copyfile", "shutil.copytree"}


def violations(text, path):
    """List what a source file at `path` (relative to src/tdsm) does and may not."""
    tree = ast.parse(text)
    names = _imported(tree)
    found = [f"imports {name}" for name in names.values() if name.split(".")[0] in PICKLES]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, options = _dotted(call.func, names), {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name in CODE_FROM_DATA:
            found.append(f"calls {name}")
        if name == "torch.load" and (path != IMPORTER or options.get("weights_only") != "True"):
            found.append("calls torch.load")
        if options.get("allow_pickle", "False") != "False" or options.get("trust_remote_code", "False") != "False":
            found.append("unpickles or trusts remote code")
        if path != WRITER and (name in RENAMES or _writes(call, name, options)):
            found.append(f"writes by {name}")
    return found


def _imported(tree):
    """Map local names to what they are imported from: {"np": "numpy", "load": "torch.load"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
            names |= {name: name for a in node.names if not a.asname for name in [a.name.split(".")[0]]}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def _dotted(node, names):
    """Resolve a called expression to a dotted name, with unknown parts as "?"."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    return f"{_dotted(node.value, names)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def _writes(call, name, options):
    if name.split(".")[-1] in {"write_text", "write_bytes"}:
        return not name.startswith("tdsm.base.io.")
    if name == "open" or name.endswith(".fdopen"):
        mode = ast.unparse(call.args[1]) if len(call.args) > 1 else options.get("mode", "'r'")
    elif name.endswith(".open") and not name.startswith(("PIL.", "os.", "webbrowser.")):
        mode = ast.unparse(call.args[0]) if call.args else options.get("mode", "'r'")
    else:
        return False
    return not re.fullmatch(r"'[rbt]+'", mode)


def test_no_file_runs_code_from_data_or_writes_beside_the_writer():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 20
    found = {str(p.relative_to(SOURCE)): violations(p.read_text(), str(p.relative_to(SOURCE))) for p in files}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


# ---------------------------------------------------------------- quick start


def loads(package, *arguments):
    """Whether `python ARGUMENTS` imports a package."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return re.search(rf"\|\s+{package}$", done.stderr, re.MULTILINE) is not None


@pytest.mark.parametrize("module", ["tdsm", "tdsm.base.errors", "tdsm.base.io", "tdsm.base.settings"])
def test_importing_needs_no_torch(module):
    assert not loads("torch", "-c", f"import {module}; dir({module})")


def test_help_needs_no_torch():
    assert not loads("torch", "-m", "tdsm", "--help")


def test_every_public_name_is_there():
    import tdsm

    assert set(tdsm.__all__) <= set(dir(tdsm))
    for _ in range(2):  # the first look imports modules, which may hide a function of the same name
        modules = [name for name in tdsm.__all__ if isinstance(getattr(tdsm, name), types.ModuleType)]
        assert modules == ["adapters", "measures"]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tdsm.nonsense  # noqa: B018


# ---------------------------------------------------------------- the tree in CONTRIBUTING = disk


def tree_difference(text, root):
    """Compare the captioned tree of `src/tdsm/` with the disk; return (named but absent, there but not named).

    The tree is the code block with a line that starts with `src/tdsm/`; its further lines are indented. A line
    names files, `exact.py`, or a folder, `decomposition/`, followed by its files; a folder without files stands for
    all of them.
    """
    block = next(b for b in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) if re.search("^src/tdsm/", b, re.M))
    lines = re.split(r"^src/tdsm/.*\n", block, flags=re.M)[1].splitlines()
    named, whole, folder = set(), set(), ""
    for line in lines:
        if not line.startswith(" "):
            break
        outer = folder if line.startswith(" " * 8) else ""
        opened = re.match(r"\s+(\w+/)", line)
        inside = outer + opened[1] if opened else outer
        files = {inside + name for name in re.findall(r"(?<![\w/.-])\w+\.py\b", line)}
        named |= files
        whole |= {inside} if opened and not files else set()
        folder = outer or inside
    there = {str(path.relative_to(root)) for path in root.rglob("*.py")}
    silent = {path for path in there if path.endswith("__init__.py") or any(path.startswith(w) for w in whole)}
    absent = {folder for folder in whole if not (root / folder).is_dir()}
    return named - there | absent, there - named - silent


def test_the_tree_in_contributing_is_what_is_on_disk():
    assert tree_difference((ROOT / "CONTRIBUTING.md").read_text(), SOURCE) == (set(), set())
