"""Put compiled kernels into a wheel, where TDSM_BUILD_KERNELS=1 asks for them; without it the wheel is pure Python.

They call no Python, so one wheel serves every version of it. Its tag is py3-none and the platform's.
"""

import importlib.util
import os
import platform
import shlex
import sys
import sysconfig
import tempfile
from pathlib import Path
from subprocess import run

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "src/tdsm/decomposition/kernels"
PORTABLE = ["-static-libstdc++", "-static-libgcc"]


class CustomBuildHook(BuildHookInterface):
    """Compile the library for every kind of processor that `build.PREBUILT` lists for this machine."""

    def initialize(self, version, build_data):
        """Compile into a folder that lives as long as the build; raise if the compiler fails."""
        if os.environ.get("TDSM_BUILD_KERNELS") != "1" or version == "editable":
            return
        if sys.platform != "linux":
            raise RuntimeError("TDSM_BUILD_KERNELS=1: kernels are built ahead for Linux only; unset it.")
        folder, build = Path(self.root) / KERNELS, _build_module(Path(self.root) / KERNELS / "build.py")
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        self.output = tempfile.TemporaryDirectory()
        for name, (_, flags) in build.PREBUILT[platform.machine()].items():
            built = str(Path(self.output.name) / f"{name}.so")
            run(build.command(compiler, [*flags, *PORTABLE], str(folder / "gated_sum.cpp"), built), check=True)
            build_data["force_include"][built] = f"tdsm/decomposition/kernels/prebuilt/{name}.so"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _build_module(path):
    """Load build.py by itself: the package around it needs torch."""
    spec = importlib.util.spec_from_file_location("build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
