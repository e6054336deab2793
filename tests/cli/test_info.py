import sys
import types

import pytest

from tdsm.base.errors import CheckpointError
from tdsm.cli import info
from tdsm.models.weights import count_parameters
from tdsm.pipeline.stages import initial_field
from tests.tinyrun import demo, tdsm, tiny


def test_the_machine_is_described(capsys):
    assert tdsm("info") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() >= {"python", "packages", "processor", "gpus", "compiler"}
    assert lines["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert "torch" in lines["packages"]
    assert "threads" in lines["processor"]


def test_a_field_is_described_wherever_it_is(tmp_path, capsys):
    field = initial_field(tiny(), 1)
    field.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved", demo(tmp_path / "run")):
        assert tdsm("info", path) == 0
        text = capsys.readouterr().out
        assert f"{count_parameters(field):,} parameters, 4 tokens × 8, decoder width 8" in text
        assert "  widths: (8,)" in text
        assert "  channels: 1" in text


def test_what_is_no_field_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no field found"):
        info.describe_field(tmp_path)


def test_a_torchvision_that_does_not_fit_is_named(monkeypatch):
    monkeypatch.setattr(info, "find_spec", lambda name: None)
    assert info.torchvision_problem() is None
    monkeypatch.setattr(info, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    assert info.torchvision_problem() is None
    monkeypatch.setitem(sys.modules, "torchvision", None)
    problem = info.torchvision_problem()
    assert "does not fit torch" in problem
    assert "pip uninstall torchvision" in problem
    assert f"warning    {problem}" in info.describe_machine()
