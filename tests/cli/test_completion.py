import shutil
import subprocess

import pytest

from tdsm.cli.completion import completion
from tdsm.cli.verbs import VERBS
from tests.tinyrun import tdsm

PRESS = """
source {script}
words=({words} "{last}")
COMP_WORDS=("${{words[@]}}"); COMP_CWORD=$(( ${{#words[@]}} - 1 ))
COMP_LINE="${{words[*]}}"; COMP_POINT=${{#COMP_LINE}}
_tyro_tdsm tdsm "{last}" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("shell") / "tdsm.bash"
    path.write_text(completion("bash"))
    return path


@pytest.mark.parametrize(
    ("words", "last", "offered"),
    [
        ("tdsm", "cl", {"classify"}),
        ("tdsm study", "wo", {"worth"}),
        ("tdsm train", "--train.st", {"--train.steps"}),
        ("tdsm classify run --maps.reduction", "", {"mean", "rgb", "l2"}),
    ],
)
def test_bash_completes_verbs_questions_flags_and_names(script, words, last, offered):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    program = PRESS.format(script=script, words=words, last=last)
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_printed_that_the_shell_can_read(shell, capsys, tmp_path):
    assert tdsm("completion", shell) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(text)
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
