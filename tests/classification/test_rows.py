import pytest
import torch

from tdsm.classification.config import ProbeConfig
from tdsm.classification.heads import HEADS, TDSMClassifier
from tdsm.classification.rows import DEFAULT_ROWS, OF_FEATURES, ROWS, settings_of
from tdsm.features.config import MapConfig
from tdsm.features.extract import compute_features
from tdsm.features.kinds import FEATURES
from tests.conftest import small_field


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    return compute_features(small_field(torch.float32, channels=3), torch.rand(2, 3, 8, 6), FEATURES, MapConfig())


@pytest.mark.parametrize("name", ROWS)
def test_a_row_reads_features_that_are_extracted(name, features):
    row = ROWS[name]
    assert row.meaning
    assert (row.features is None) == (name == "majority")
    if row.head is not None:
        height, width, maps = features[row.features].shape[1:]
        options = row.head.model_dump(exclude={"kind"})
        classifier = TDSMClassifier(maps, 7, row.head.kind, (height, width), **options)
        assert classifier(features[row.features].float()).shape == (2, 7)


def test_rows_of_the_method_are_trained_and_read_maps_of_tokens():
    for name, row in ROWS.items():
        assert row.is_trained == (not name.startswith("untrained-"))
        is_of_tokens = row.features is not None and FEATURES[row.features].is_token_map
        assert (row.role == "tdsm") == (is_of_tokens and row.is_trained)


def test_every_feature_has_rows_and_every_head_reads_some():
    assert {row.features for row in ROWS.values()} == {None, *FEATURES}
    assert {row.head.kind for row in ROWS.values() if row.head is not None} == set(HEADS)
    assert "untrained-pixels-linear" not in ROWS  # pixels know of no field
    assert "tokens-cnn" not in ROWS  # tokens have no places
    assert "pixels-attention" not in ROWS  # nor pixels tokens


def test_what_a_table_shows_unasked_holds_every_promised_baseline():
    rows = [ROWS[name] for name in DEFAULT_ROWS]
    described = {(row.features, row.reader, row.is_trained) for row in rows}
    assert described >= {
        (None, "majority", True),
        ("tdsm", "ridge", True),
        ("tokens", "ridge", True),
        ("pixels", "ridge", True),
        ("pixels", "resnet", True),
        ("reconstruction", "resnet", True),
        ("pixels", "flatten", True),
        ("pixels", "knn", True),
        ("pixels", "cnn", True),
        ("tokens", "avg", True),
        ("tokens", "flatten", True),
        ("values", "flatten", True),
        ("reconstruction", "flatten", True),
        ("tokens", "transformer", True),
        ("tdsm", "avg", False),
    }


def test_what_decides_a_fitted_row_is_what_its_reader_uses():
    every = {name for reader in ("ridge", "knn", "avg") for name in settings_of(reader, is_spatial=True)}
    assert every == set(ProbeConfig.model_fields) - set(OF_FEATURES)
    assert settings_of("resnet") == settings_of("avg")
    assert "seeds" in settings_of("avg")
    assert set(settings_of("avg", is_spatial=True)) - set(settings_of("avg")) == {"map_augment"}


def test_what_may_be_moved_like_an_image_is_known():
    spatial = {name for name, kind in FEATURES.items() if kind.is_spatial}
    assert spatial == set(FEATURES) - {"tokens", "values", "random_expansion"}


def test_the_same_cnn_reads_maps_pixels_and_reconstruction():
    names = ("tdsm-cnn", "pixels-cnn", "reconstruction-cnn", "untrained-tdsm-cnn")
    assert len({ROWS[name].head for name in names}) == 1
