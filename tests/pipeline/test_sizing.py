import numpy as np
import pytest
from PIL import Image

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.decode import decode
from tdsm.pipeline import sizing
from tdsm.pipeline.config import RunConfig


@pytest.fixture
def clock(monkeypatch):
    """A step takes a hundredth of a second, the features of an image a thousandth, its part in heads a hundredth."""
    monkeypatch.setattr(sizing, "step_seconds", lambda *_: 0.01)
    monkeypatch.setattr(sizing, "extraction", lambda *_: (0.001, 1000))
    monkeypatch.setattr(sizing, "fitting", lambda *_: 0.01)


def write(folder, sizes, channels=3):
    draw = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        shape = (height, width, channels) if channels > 1 else (height, width)
        path = folder / ("a", "b")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return RunConfig(data=DataConfig(source=str(folder)))


def test_steps_take_their_share_of_the_time(clock, tmp_path):
    config = write(tmp_path, [(12, 10)] * 40)
    assert sizing.sized(config, 1.0).train.steps == 2700
    assert sizing.sized(config, 2.0).train.steps == 5400
    assert sizing.sized(config, 1e-9).train.steps == sizing.FEWEST_STEPS


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (32, 3), (64, 3)])
def test_a_field_fits_its_images(clock, tmp_path, side, channels):
    config = sizing.sized(write(tmp_path, [(side, side)] * 20, channels), 1.0)
    field, train = config.field, config.train
    assert field.channels == channels
    assert 16 <= field.num_latents <= side * side
    assert config.maps.size == (8, 8)
    seen = train.context_fraction * side * side if train.objectives["sparse_context"] else side * side
    assert seen <= 256 + 1
    assert train.num_queries <= side * side


def test_large_images_and_images_of_several_sizes_are_brought_to_one(clock, tmp_path):
    assert sizing.sized(write(tmp_path / "large", [(90, 90)] * 20), 1.0).data.image_size == sizing.LARGEST
    several = write(tmp_path / "several", [(20, 20), (30, 24)] * 10)
    assert sizing.sized(several, 1.0).data.image_size == sizing.LARGEST
    named = several.model_copy(update={"data": several.data.model_copy(update={"image_size": 16})})
    assert sizing.sized(named, 1.0).data.image_size == 16


def test_no_more_images_are_read_than_there_is_time_for(clock, tmp_path, monkeypatch):
    config = write(tmp_path, [(8, 8)] * 400)
    monkeypatch.setattr(sizing, "cores", lambda: 2)
    seen = sizing.glance(config.data)
    assert (seen.channels, seen.sizes, seen.images) == (3, {(8, 8)}, 400)
    assert (few := sizing.sized(config, 10.0)).data.max_train is None
    assert few.probe.max_train == 400  # all
    assert few.probe.batch_size == sizing.BATCH
    monkeypatch.setattr(sizing, "glance", lambda data: seen._replace(seconds=0.1))
    data = sizing.sized(config, 1.0).data  # a tenth of a minute on two cores
    assert data.max_train == 120
    assert data.max_test == 120
    named = config.model_copy(update={"data": config.data.model_copy(update={"max_train": 50})})
    assert sizing.sized(named, 1.0).data.max_train == 50
    monkeypatch.setattr(sizing, "extraction", lambda *_: (0.03, 1000))
    assert sizing.sized(config, 1.0).probe.max_train == 100  # 0.15 minutes, a third of it for each set
    assert sizing.sized(config, 1.0).data.max_test == 100
    monkeypatch.setattr(sizing, "extraction", lambda *_: (0.3, 1000))
    shares = config.model_copy(update={"data": config.data.model_copy(update={"validation_fraction": 0.5})})
    assert sizing.sized(shares, 10.0).data.max_train == 200  # so that validation has 100


def test_heads_see_no_more_images_than_there_is_time_for(clock, tmp_path, monkeypatch):
    config = write(tmp_path, [(8, 8)] * 400)
    monkeypatch.setattr(sizing, "fitting", lambda *_: 0.1)
    assert sizing.sized(config, 1.0).probe.max_train == 120  # a fifth of a minute


def test_few_images_make_a_small_batch(clock, tmp_path):
    assert sizing.sized(write(tmp_path, [(8, 8)] * 20), 1.0).train.batch_size == 10
    assert sizing.sized(write(tmp_path, [(8, 8)] * 40), 1.0).train.batch_size == sizing.BATCH


def test_large_images_are_not_all_decoded_to_learn_their_size(clock, tmp_path, monkeypatch):
    config, decoded = write(tmp_path, [(90, 90)] * 400), []
    monkeypatch.setattr("tdsm.data.decode.decode", lambda *given, kept=decode: decoded.append(1) or kept(*given))
    sizing.sized(config, 1.0)
    assert len(decoded) == 200  # a few as they are, and again as they will be


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(DataError):
        sizing.sized(RunConfig(data=DataConfig(source=str(tmp_path))), 1.0)
