"""Where the compiled kernel comes from, and that nothing planted, damaged or missing is loaded or stops anything."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tdsm.decomposition.kernels import build, cpu, eager, library
from tdsm.decomposition.kernels.gated_sum import gated_sum
from tests.decomposition.test_kernels import random_inputs

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A process that has not decided yet, with a cache of its own and nothing prebuilt; returns its cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library, "PREBUILT", tmp_path / "prebuilt")
    library.load.cache_clear()
    yield tmp_path / "cache" / "tdsm"
    library.load.cache_clear()


def again():
    library.load.cache_clear()
    return library.load()


def refused(words):
    """Load, and check that one line says why there is no kernel, and that decoding goes on."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for channels in (3, 3, 1):
            inputs = random_inputs(2, 3, 4, channels)
            assert torch.equal(gated_sum(*inputs), eager.forward(*inputs))
    (line,) = [str(one.message) for one in said]
    assert words in line
    assert "\n" not in line
    assert cpu.describe().startswith("eager: ")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@needs_compiler
def test_it_is_compiled_once_per_machine_and_says_so(cache):
    assert library.load().handle is not None
    assert cpu.describe().startswith("compiled here by c++ ")
    assert {path.suffix for path in cache.iterdir()} == {".so", ".sha256"}
    assert (mode(cache), *{mode(path) & 0o077 for path in cache.glob("*.so")}) == (0o700, 0)
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert again().handle is not None
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


@pytest.fixture
def compiled(cache, monkeypatch):
    """Compile the library without loading it, as a process does not let go of one; return its path."""
    monkeypatch.setattr(library, "_opened", lambda path, origin: library.Library(None, origin))
    library.load()
    (path,) = cache.glob("*.so")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    return path


def in_another_process():
    """Load the library in a fresh process; return what it says of it."""
    program = "from tdsm.decomposition.kernels import cpu; print(cpu.describe())"
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "another", "no hash", "writable"])
def test_a_library_that_is_not_what_was_compiled_is_compiled_again(compiled, damage):
    original, inode = compiled.read_bytes(), compiled.stat().st_ino
    if damage == "truncated":
        os.truncate(compiled, 5000)  # loading it would end the process
    elif damage == "another":
        compiled.write_bytes(original[:-8] + b"anything")
    elif damage == "no hash":
        compiled.with_suffix(".sha256").unlink()
    else:
        compiled.chmod(0o666)
    assert in_another_process().startswith("compiled here by c++ ")
    assert compiled.read_bytes() == original
    assert compiled.stat().st_ino != inode


@needs_compiler
def test_a_planted_library_is_not_run(compiled, tmp_path):
    source, planted, mark = tmp_path / "planted.cpp", tmp_path / "planted.so", tmp_path / "mark"
    source.write_text(
        f'#include <cstdio>\n__attribute__((constructor)) void f() {{ std::fclose(std::fopen("{mark}", "w")); }}'
    )
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(planted)], check=True)
    ctypes.CDLL(str(planted))
    assert mark.exists()  # it would have run
    mark.unlink()
    shutil.copyfile(planted, compiled)
    assert in_another_process().startswith("compiled here by c++ ")
    assert not mark.exists()


@pytest.mark.parametrize("permissions", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write_is_refused(cache, permissions):
    cache.mkdir(parents=True)
    cache.chmod(permissions)
    refused("can write there")
    assert list(cache.iterdir()) == []


def test_a_folder_of_another_user_is_refused(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    refused("another user owns it")


def test_a_folder_that_is_a_link_is_refused(cache, tmp_path):
    cache.parent.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    refused("is a link")


def test_a_folder_in_a_place_where_all_can_rename_is_refused(cache):
    cache.parent.mkdir()
    cache.parent.chmod(0o777)
    refused("can be written by every user")


@needs_compiler
def test_a_sticky_place_for_all_is_well(cache):
    cache.parent.mkdir()
    cache.parent.chmod(0o1777)
    assert library.load().handle is not None


def test_a_file_where_the_folder_should_be_is_refused(cache):
    cache.parent.parent.joinpath("cache").write_text("")
    refused("cache")


def test_no_home_is_said(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    refused("Could not determine home directory")


@pytest.mark.parametrize(
    ("compiler", "words"),
    [("/nowhere/c++", "No such file"), ("false", "returned non-zero"), ("c++ '-O3", "No closing quotation")],
)
def test_a_compiler_that_is_none_is_said(compiler, words, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    refused(words)


def test_a_machine_without_a_compiler_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused("no C++ compiler found")


def test_a_process_without_any_compiler_decodes_and_says_so_once(tmp_path):
    program = """
import torch, tdsm
field = tdsm.NeuralField(tdsm.FieldConfig(widths=(16,), num_latents=8, mapping_dim=6))
tokens = field.encode(torch.rand(2, 3, 8, 8))
fast, slow = (tdsm.component_images(field, tokens, (8, 8), strategy=way) for way in ("exact", "loop"))
torch.testing.assert_close(fast, slow)
tdsm.spatial_map(field, tokens, (8, 8)).sum().backward()
print(tdsm.plan_decoding(field, 16, field.queries(tdsm.grid((8, 8)))).backend)
"""
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    for compiler in ({"PATH": ""}, {"CXX": "/nowhere/c++"}):
        private = {"XDG_CACHE_HOME": str(tmp_path / "none")}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment | private | compiler, capture_output=True, text=True, check=True)
        assert done.stdout == "eager\n"
        assert done.stderr.count("runs without its compiled kernel") == 1


def test_a_compiler_that_fails_is_asked_once(monkeypatch, tmp_path):
    calls, script = tmp_path / "calls", tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\necho called >> {calls}\necho first line >&2; echo second >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    refused("first line")
    assert calls.read_text() == "called\n"


def test_a_compiler_that_hangs_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "COMPILE_SECONDS", 0.2)
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    refused("timed out")


@needs_compiler
@pytest.mark.skipif(not library.IS_X86, reason="not x86")
def test_what_is_prebuilt_is_taken_by_what_the_processor_can(monkeypatch, cache):
    library.PREBUILT.mkdir()
    able = library.instructions()
    for name, (_, flags) in build.PREBUILT["x86_64"].items():
        subprocess.run(
            build.command(["c++"], flags, str(library.SOURCE), str(library.PREBUILT / f"{name}.so")), check=True
        )
    found = {}
    for best in ("AVX512", "AVX2", "DEFAULT"):
        if best in able:
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda best=best: best)
            found[best] = again().origin.split(" by ")[0]
    expected = {"AVX512": "prebuilt x86_64-v4, 16 lanes", "AVX2": "prebuilt x86_64-v3, 8 lanes"}
    expected |= {"DEFAULT": "compiled here"}
    assert found == {best: expected[best] for best in able}
