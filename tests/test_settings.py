from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from tdsm import settings
from tdsm.data.config import AugmentConfig, Channels, DataConfig
from tdsm.decomposition import STRATEGIES
from tdsm.heads import HEADS
from tdsm.reduce import REDUCTIONS

MODELS = [
    *(model for model in vars(settings).values() if isinstance(model, type) and issubclass(model, settings.Settings)),
    AugmentConfig,
    DataConfig,
]


def choices(model: type[BaseModel], name: str) -> tuple:
    return get_args(model.model_fields[name].annotation)


def test_choices_are_the_keys_of_their_dictionaries():
    assert choices(settings.HeadConfig, "pool") == tuple(HEADS)
    assert choices(settings.MapConfig, "reduction") == tuple(REDUCTIONS)
    assert choices(settings.MapConfig, "strategy") == ("auto", *STRATEGIES)
    assert choices(DataConfig, "channels") == get_args(Channels)


def test_all_models_are_found():
    assert {model.__name__ for model in MODELS} >= {"RunConfig", "FieldConfig", "TrainConfig", "MapConfig"}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_frozen_and_refuses_unknown_keys(model):
    made = model()
    for name in model.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, getattr(made, name))
    with pytest.raises(ValidationError, match="extra_forbidden"):
        model(no_such_entry=1)


@pytest.mark.parametrize("model", MODELS)
def test_every_entry_is_described_and_survives_json(model):
    assert all(entry.description for entry in model.model_fields.values())
    assert model.model_validate_json(model().model_dump_json()) == model()


@pytest.mark.parametrize(
    ("model", "entry"),
    [
        (settings.FieldConfig, {"widths": ()}),
        (settings.FieldConfig, {"num_latents": 0}),
        (settings.FieldConfig, {"fourier_scale": 0}),
        (settings.FieldConfig, {"processor_depth": -1}),
        (settings.HeadConfig, {"kernel_size": 2}),
        (settings.HeadConfig, {"dropout": 1.0}),
        (settings.HeadConfig, {"pool": "mean"}),
        (settings.TrainConfig, {"steps": -1}),
        (settings.TrainConfig, {"learning_rate": 0}),
        (settings.TrainConfig, {"context_fraction": 0}),
        (settings.TrainConfig, {"context_fraction": 1.1}),
        (settings.TrainConfig, {"num_queries": 0}),
        (settings.TrainConfig, {"objectives": {"full": -1}}),
        (settings.TrainConfig, {"subset_sizes": "normal"}),
        (settings.MapConfig, {"size": (0, 4)}),
        (settings.MapConfig, {"size": (4,)}),
        (settings.ProbeConfig, {"learning_rates": ()}),
        (settings.ProbeConfig, {"weight_decays": (-1.0,)}),
        (settings.ProbeConfig, {"views": -1}),
        (settings.RunConfig, {"seed": -1}),
        (DataConfig, {"validation_fraction": 0}),
        (AugmentConfig, {"crop": -1}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(model, entry):
    with pytest.raises(ValidationError) as caught:
        model(**entry)
    assert {error["loc"][0] for error in caught.value.errors()} == set(entry)


def test_the_defaults_of_a_field_are_the_reference_scale():
    field = settings.FieldConfig()
    assert (field.widths, field.num_tokens, field.query_dim, field.processor_depth) == ((256, 384, 512), 256, 192, 4)
    assert (field.cross_heads, field.cross_head_dim) == (4, 128)
    assert (field.self_heads, field.self_head_dim, field.feedforward_multiple) == (8, 128, 4)
    assert field.fourier_scale == 15.0
