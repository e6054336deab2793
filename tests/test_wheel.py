"""A wheel with compiled kernels: what is in it, its tag, and that an installed one uses them."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tdsm.decomposition.kernels import build

pytest.importorskip("hatchling", reason="pip install hatchling")
ROOT = Path(__file__).resolve().parents[1]
NAMES = build.PREBUILT.get(platform.machine(), {})


def wheel(folder, **environment):
    """Build a wheel of this tree; return its path."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not NAMES, reason="no kernels are built ahead for this machine")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")
def test_a_wheel_with_kernels_is_used_where_no_compiler_is(tmp_path):
    path = wheel(tmp_path, TDSM_BUILD_KERNELS="1")
    assert path.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    with zipfile.ZipFile(path) as archive:
        held = {name for name in archive.namelist() if name.endswith(".so")}
        archive.extractall(tmp_path / "installed")
    assert held == {f"tdsm/decomposition/kernels/prebuilt/{name}.so" for name in NAMES}
    program = "from tdsm.decomposition.kernels import cpu; print(cpu.describe())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "CXX": "/nowhere/c++"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("prebuilt ")


@pytest.mark.slow
def test_a_wheel_without_them_is_pure(tmp_path):
    path = wheel(tmp_path, TDSM_BUILD_KERNELS="0")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        assert "tdsm/decomposition/kernels/gated_sum.cpp" in archive.namelist()
        assert "tdsm/explore/page/page.js" in archive.namelist()
        assert not [name for name in archive.namelist() if name.endswith(".so")]


@pytest.mark.slow
def test_a_compiler_that_fails_fails_the_wheel(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        wheel(tmp_path, TDSM_BUILD_KERNELS="1", CXX="false")
