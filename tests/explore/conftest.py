"""What the tests of the page share: a finished run to look at, and its studio."""

import pytest

from tdsm.explore.studio import studio_of_run
from tests.tinyrun import demo, finished


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return finished(demo(tmp_path_factory.mktemp("explored") / "run"))


@pytest.fixture(scope="session")
def studio(run):
    return studio_of_run(run)
