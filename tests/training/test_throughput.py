import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tdsm.pipeline.field import new_field
from tdsm.training import throughput as module
from tdsm.training.config import TrainConfig
from tdsm.training.objectives import training_loss
from tdsm.training.throughput import PEAK_FLOPS, Throughput, flops_of_image, is_emulated, peak_flops
from tests.tinyrun import tiny

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    times = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: times[0])
    return times


def test_images_are_counted_over_the_time_between_start_and_stop(clock):
    speed = Throughput(flops=5e9, peak=1e12)
    for images in (30, 10):
        speed.start()
        speed.images += images
        clock[0] += 2
        speed.stop()
        clock[0] += 100
    assert speed.take() == {"images_per_second": 10.0, "mfu": pytest.approx(0.05)}
    speed.start()
    speed.images += 8
    clock[0] += 1
    speed.stop()
    assert speed.take()["images_per_second"] == 8.0
    assert "mfu" not in Throughput().take()


def test_the_arithmetic_of_an_image_is_that_of_its_forward_and_backward_pass():
    field, images, config = new_field(tiny(field__channels=1).field, 0), torch.rand(1, 1, 8, 8), TrainConfig()
    with FlopCounterMode(display=False) as counter:
        training_loss(field, images, config, seed=0, step=0).backward()
    assert flops_of_image(field, images, config) == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert all(p.grad is not None for p in field.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H100 PCIe", "float32", 51e12),
        ("NVIDIA H200", "float16", 989e12),
        ("NVIDIA A100-SXM4-40GB", "float16", 312e12),
        ("NVIDIA GeForce RTX 4090", "float32", None),
    ],
)
def test_a_peak_is_that_of_the_device_and_precision(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA, precision) == peak


def test_a_peak_is_known_for_every_precision_and_on_no_cpu():
    precisions = TrainConfig.model_fields["precision"].annotation.__args__
    assert set(PEAK_FLOPS) == set(precisions)
    assert all(peak_flops(CPU, precision) is None for precision in precisions)


@pytest.mark.parametrize(
    ("text", "bfloat16", "float16"),
    [
        ("flags\t: fpu avx2 avx512f", True, True),
        ("flags\t: fpu avx512f avx512_bf16", False, True),
        ("Features\t: fp asimd asimdhp bf16", False, False),
        ("", False, False),
    ],
)
def test_a_cpu_without_units_is_known_by_its_flags(tmp_path, text, bfloat16, float16):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\n{text}\n")
    assert [is_emulated(CPU, p, file) for p in ("float32", "bfloat16", "float16")] == [False, bfloat16, float16]
    assert not is_emulated(CUDA, "bfloat16", file)
    assert not is_emulated(CPU, "bfloat16", tmp_path / "none")
