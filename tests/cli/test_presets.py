import pytest

from tdsm.cli.main import DESCRIPTION
from tdsm.cli.presets import PRESETS
from tdsm.data.load import resolve
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.models.config import FieldConfig
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.run import chosen_rows

SOURCES = {
    "digits": ("digits", ""),
    "images": ("digits", ""),  # until images are named
    "fashion": ("hub", "zalando-datasets/fashion_mnist"),
    "cifar10": ("hub", "uoft-cs/cifar10"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_run(name):
    config = PRESETS[name]()
    assert RunConfig.model_validate(config.model_dump()) == config
    assert PRESETS[name].__name__ == name.replace("-", "_")
    assert PRESETS[name].__doc__
    assert select_tokens(config.field.num_tokens, parse_selection(config.maps.selection))
    assert resolve(config.data.source) == SOURCES[name.split("-")[0]]
    assert chosen_rows(config.probe.rows)


def test_the_reference_preset_is_at_reference_scale():
    assert PRESETS["cifar10-reference"]().field == FieldConfig()


def test_presets_named_in_the_help_exist():
    named = [word for word in DESCRIPTION.split() if word in PRESETS]
    assert "cifar10-small" in named
