"""What every test shares: a fixed seed, one thread, repeatable properties and one small field."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # a second thread only waits on tensors this small

# Every width differs, so that a mixed-up axis cannot go unseen.
SMALL = {
    "widths": (10, 12, 14),
    "num_latents": 5,
    "mapping_dim": 8,
    "fourier_scale": 3.0,
    "cross_heads": 2,
    "cross_head_dim": 6,
    "self_heads": 3,
    "self_head_dim": 4,
    "processor_depth": 2,
    "feedforward_multiple": 2,
}


def small_field(dtype: torch.dtype = torch.float64, **changes: object) -> NeuralField:
    """Return a small field with every weight drawn at random, biases and norms included."""
    field = NeuralField(FieldConfig(**SMALL | changes)).to(dtype).eval()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return field


EXPECTED_SKIPS = (
    *("no CIFAR-10", "no GPU", "needs fork", "not x86", "this processor has no", "no kernels are built ahead"),
    *("Triton is not installed", "g++ is not installed", "clang++ is not installed", "eager:"),
    *("starlette is not installed", "uvicorn is not installed", "playwright is not installed", "no chromium"),
    *("Ray is not installed", "zensical is not installed", "nbclient is not installed"),
    *("bash is not installed", "zsh is not installed", "fish is not installed"),
)
"""Words of what a machine may lack; a test skipped for any other reason fails the run."""


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """Fail a run that skipped a test for a reason nobody foresaw."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = terminal.stats.get("skipped", []) if terminal else []
    odd = [report for report in reports if not any(words in str(report.longrepr) for words in EXPECTED_SKIPS)]
    for report in odd:
        terminal.write_line(f"unexpected skip: {report.nodeid}: {report.longrepr[-1]}", red=True)
    if odd and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def field() -> NeuralField:
    return small_field()


@pytest.fixture
def tokens(field) -> torch.Tensor:
    """Tokens of two images."""
    return torch.randn(2, field.config.num_tokens, field.config.widths[-1], dtype=torch.float64)
