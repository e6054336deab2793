import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import reference_backbone as script

from tests.tinyrun import tdsm


def test_the_first_step_is_the_reference_backbone_as_it_is_said_to_be(tmp_path, capsys):
    first = script.steps(tmp_path / "run", "uoft-cs/cifar10", rehearse=False)[0]
    assert tdsm(*first, "--print-config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["field"]["num_latents"], config["field"]["widths"][-1]) == (256, 512)
    assert (config["train"]["precision"], config["train"]["compile"], config["device"]) == ("bfloat16", True, "cuda")
    assert config["data"]["source"] == "uoft-cs/cifar10"


@pytest.mark.slow
def test_the_rehearsal_goes_on_after_it_was_done(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["reference_backbone.py", str(run), "--rehearse"])
    assert script.main() == 0
    for name in ("history.json", "table.md", "regimes.md", "report.html", "config.json", "environment.json"):
        assert (run / name).is_file(), name
    assert "| finetune |" in (run / "regimes.md").read_text()
    assert script.steps(run, "digits", rehearse=True)[0][0] == "classify"
    before = (run / "table.json").read_bytes()
    assert script.main() == 0
    assert (run / "table.json").read_bytes() == before
