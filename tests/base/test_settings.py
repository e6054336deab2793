import pytest
from pydantic import ValidationError

from tdsm.base.settings import Settings
from tdsm.bench.config import BenchConfig
from tdsm.classification.config import HeadConfig, LearningRates, MapAugment, ProbeConfig, RegimeConfig
from tdsm.classification.registry import HEADS
from tdsm.data.config import AugmentConfig, DataConfig
from tdsm.decomposition import DECOMPOSITIONS, REDUCTIONS, STRATEGIES
from tdsm.features.config import ExtractConfig, MapConfig
from tdsm.models.config import FieldConfig
from tdsm.pipeline.config import RunConfig
from tdsm.study.config import (
    AnalysisConfig,
    Asked,
    ObjectiveStudyConfig,
    RegionStudyConfig,
    StudyConfig,
    TokenStudyConfig,
)
from tdsm.training.config import LoopConfig, TrainConfig
from tdsm.training.registry import OBJECTIVES

MODELS = [
    AnalysisConfig,
    Asked,
    AugmentConfig,
    BenchConfig,
    DataConfig,
    ExtractConfig,
    FieldConfig,
    HeadConfig,
    LearningRates,
    LoopConfig,
    MapAugment,
    MapConfig,
    ObjectiveStudyConfig,
    ProbeConfig,
    RegimeConfig,
    RegionStudyConfig,
    RunConfig,
    StudyConfig,
    TokenStudyConfig,
    TrainConfig,
]


@pytest.mark.parametrize(
    ("model", "entry", "registry"),
    [
        (HeadConfig, "kind", HEADS),
        (MapConfig, "method", DECOMPOSITIONS),
        (MapConfig, "reduction", REDUCTIONS),
        (MapConfig, "strategy", STRATEGIES),
    ],
)
def test_a_choice_is_a_name_in_its_registry(model, entry, registry):
    assert [getattr(model(**{entry: name}), entry) for name in registry] == list(registry)
    with pytest.raises(ValidationError, match=f"unknown {registry.what} .nothing.; expected one of "):
        model(**{entry: "nothing"})
    with registry.added("nothing", object()):
        assert getattr(model(**{entry: "nothing"}), entry) == "nothing"


def test_objectives_are_the_registrys():
    assert list(TrainConfig().objectives) == list(ObjectiveStudyConfig().objectives) == list(OBJECTIVES)
    with pytest.raises(ValidationError, match="unknown objective 'nest', perhaps you meant 'nested'"):
        TrainConfig(objectives={"nest": 1})
    with OBJECTIVES.added("another", object()):
        assert TrainConfig(objectives={"another": 2}).objectives["another"] == 2
        assert TrainConfig().objectives["another"] == 0


def below(model: type) -> set[type]:
    return {model}.union(*map(below, model.__subclasses__()))


def test_all_models_are_found():
    assert set(MODELS) == {model for model in below(Settings) if model.__module__.endswith(".config")}


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
        (FieldConfig, {"widths": ()}),
        (FieldConfig, {"num_latents": 0}),
        (FieldConfig, {"fourier_scale": 0}),
        (FieldConfig, {"processor_depth": -1}),
        (HeadConfig, {"kernel_size": 2}),
        (HeadConfig, {"dropout": 1.0}),
        (HeadConfig, {"kind": "mean"}),
        (TrainConfig, {"steps": -1}),
        (TrainConfig, {"learning_rate": 0}),
        (TrainConfig, {"context_fraction": 0}),
        (TrainConfig, {"context_fraction": 1.1}),
        (TrainConfig, {"num_queries": 0}),
        (TrainConfig, {"objectives": {"full": -1}}),
        (TrainConfig, {"subset_sizes": "normal"}),
        (MapConfig, {"size": (0, 4)}),
        (MapConfig, {"size": (4,)}),
        (ProbeConfig, {"learning_rates": ()}),
        (ProbeConfig, {"weight_decays": (-1.0,)}),
        (ProbeConfig, {"views": -1}),
        (RunConfig, {"seed": -1}),
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
    field = FieldConfig()
    assert (field.widths, field.num_tokens, field.query_dim, field.processor_depth) == ((256, 384, 512), 256, 192, 4)
    assert (field.cross_heads, field.cross_head_dim) == (4, 128)
    assert (field.self_heads, field.self_head_dim, field.feedforward_multiple) == (8, 128, 4)
    assert field.fourier_scale == 15.0
