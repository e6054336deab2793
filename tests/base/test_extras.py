import subprocess
import sys

import pytest

from tdsm.base.extras import LIBRARIES, missing_words

CORE = """
import sys
sys.modules.update(dict.fromkeys({libraries!r}))
import torch, tdsm
config = tdsm.FieldConfig(widths=(8, 8), num_latents=4, mapping_dim=4, cross_head_dim=4, self_head_dim=4)
field = tdsm.NeuralField(config).eval()
tokens = field.encode(torch.rand(1, 3, 6, 5))
for method in ("solo", "additive", "leave_one_out", "attention"):
    assert tdsm.decompose(field, tokens, size=(6, 5), method=method).components.shape == (1, 4, 6, 5, 3)
field.save_pretrained(sys.argv[1])
again = tdsm.load_field(sys.argv[1])
assert torch.equal(again.encode(torch.zeros(1, 3, 4, 4)), field.encode(torch.zeros(1, 3, 4, 4)))
assert tdsm.spatial_map(field, tokens, size=(6, 5)).shape == (1, 6, 5, 4)
"""


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_decomposing_a_field_needs_the_core_alone(tmp_path):
    done = run(CORE.format(libraries=sorted(LIBRARIES)), tmp_path / "field")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("tyro", ["--help"]),
        ("sklearn", ["demo", "--dry-run", "--data.source", "digits"]),
        ("pyarrow", ["demo", "--dry-run", "--data.source", "parquet:{folder}"]),
    ],
)
def test_the_command_line_names_the_extra_that_is_missing(library, arguments, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    code = f"import sys; sys.modules[{library!r}] = None; import tdsm.__main__ as tdsm; tdsm.main()"
    done = run(code, *(argument.format(folder=tmp_path) for argument in arguments))
    assert done.stderr.splitlines()[-1] == f"tdsm: {missing_words(ModuleNotFoundError(name=library))}"
    assert done.returncode != 0


def test_other_modules_are_not_explained():
    assert missing_words(ModuleNotFoundError(name="nowhere")) is None
    assert missing_words(ImportError("of what?")) is None
