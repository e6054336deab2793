import pytest

from tests.tinyrun import demo, finished


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run of the module's own."""
    return finished(demo(tmp_path_factory.mktemp("demo") / "run"))
