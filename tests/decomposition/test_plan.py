"""What `plan_decoding` decides, from what, and that a caller's choice is kept."""

import logging
import sys

import pytest
import torch

import tdsm
from tdsm.base.errors import UsageError
from tdsm.decomposition import STRATEGIES, component_images, plan_decoding, pooled_map, separated, spatial_map
from tdsm.decomposition.definition import CHUNK_BYTES, default_chunk
from tdsm.decomposition.kernels import cpu, library
from tdsm.decomposition.strategies import Strategy
from tdsm.tokenfield.coords import grid
from tests.conftest import small_field

needs_kernel = pytest.mark.skipif(not cpu.serves(1), reason=cpu.describe())


def plan(dtype=torch.float32, pairs=10, points=6, **options):
    field = small_field(dtype)
    return plan_decoding(field, pairs, field.queries(torch.rand(points, 2)).to(dtype), **options)


# ---------------------------------------------------------------- the backend


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_in_float32_take_the_compiled_kernel_however_few_they_are(dtype):
    assert plan(dtype).backend == "cpu"
    assert plan(dtype, pairs=1, points=1).backend == "cpu"


@needs_kernel
def test_many_channels_are_a_matter_of_matrix_products():
    assert plan(channels=cpu.MOST_CHANNELS).backend == "cpu"
    assert plan(channels=cpu.MOST_CHANNELS + 1).backend == "eager"


def test_float64_is_eager():
    assert plan(torch.float64).backend == "eager"


def test_without_its_kernel_it_is_eager(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: library.Library(None, "eager: no C++ compiler found"))
    assert plan(pairs=10**9).backend == "eager"


class OnCard(torch.Tensor):
    """A tensor that says it is on a graphics card."""

    device = torch.device("cuda")


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float32, "gpu"), (torch.bfloat16, "gpu"), (torch.float64, "eager")]
)
def test_a_graphics_card_takes_the_triton_kernel_and_a_quarter_of_its_memory(dtype, backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (64 * 2**30, 80 * 2**30))
    field = small_field(dtype)
    queries = field.queries(torch.rand(1000, 2)).to(dtype).as_subclass(OnCard)
    monkeypatch.setattr(sys.modules["tdsm.decomposition.kernels.gated_sum"], "find_spec", lambda name: object())
    chosen = plan_decoding(field, 10**9, queries, channels=1)
    assert (chosen.backend, chosen.chunk * 1000 * 4) == (backend, 16 * 2**30 // 4000 * 4000)
    monkeypatch.setattr(sys.modules["tdsm.decomposition.kernels.gated_sum"], "find_spec", lambda name: None)
    assert plan_decoding(field, 10**9, queries, channels=1).backend == "eager"


def test_a_readout_of_another_form_is_read_out_as_it_is():
    field = small_field(has_decoder_feedforward=False)
    queries = field.queries(torch.rand(6, 2))
    chosen = plan_decoding(field, 10, queries)
    assert (chosen.strategy, chosen.backend, chosen.chunk) == ("exact", None, default_chunk(queries))
    assert "does not separate" in chosen.reason


# ---------------------------------------------------------------- the chunk


def test_a_chunk_holds_64_mib_of_maps():
    points, channels = 1024, 3
    chunk = plan(pairs=10**6, points=points, channels=channels).chunk
    assert chunk * points * channels <= separated.MAP_FLOATS < (chunk + 1) * points * channels


def test_a_chunk_is_never_empty_nor_more_than_there_is():
    assert plan(pairs=7).chunk == 7
    assert plan(pairs=0).chunk == 1
    field = small_field(torch.float32)
    wide = torch.empty(separated.MAP_FLOATS // 3 + 1, 16, device="meta")
    assert plan_decoding(field, 9, wide).chunk == 1


def test_the_loop_as_a_batch_keeps_its_hidden_units_under_the_budget():
    assert 0 < default_chunk(torch.empty(1024, 192, device="meta")) * 1024 * 768 * 2 * 4 <= CHUNK_BYTES
    assert default_chunk(torch.empty(2**24, 192, device="meta")) == 1


# ---------------------------------------------------------------- what a caller decides


@pytest.mark.parametrize("options", [{"chunk": 3}, {"backend": "eager"}, {"chunk": 3, "backend": "eager"}], ids=str)
def test_a_callers_choice_is_kept(options):
    chosen = plan(**options)
    assert {name: getattr(chosen, name) for name in options} == options


@pytest.mark.parametrize("call", [component_images, spatial_map, pooled_map])
def test_a_callers_choice_reaches_the_kernel(call, monkeypatch):
    seen = []
    original = separated.gated_sum

    def spy(a, b, *rest, backend):
        seen.append((len(b), backend))
        return original(a, b, *rest, backend=backend)

    monkeypatch.setattr(separated, "gated_sum", spy)
    field, tokens = small_field(torch.float32), torch.randn(2, 5, 14)
    call(field, tokens, (4, 4), chunk=4, backend="eager")
    assert seen == [(4, "eager"), (4, "eager"), (2, "eager")]


def test_the_strategy_is_the_callers(field, tokens):
    with STRATEGIES.added("zeros", Strategy(lambda *_: torch.zeros(2, 5, 16, 3).double())):
        assert not component_images(field, tokens, (4, 4), strategy="zeros").any()
    assert component_images(field, tokens, (4, 4), strategy="auto").any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "fast"}, "backend 'fast' does not serve sums in torch.float64 on cpu here, expected one of eager"),
        ({"backend": "cpu"}, "backend 'cpu' does not serve sums in torch.float64"),
        ({"backend": "gpu"}, "backend 'gpu' does not serve"),
        ({"backend": "eager", "strategy": "loop"}, "strategy 'loop' has no backends"),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_kept_is_refused(field, tokens, options, words):
    with pytest.raises(UsageError, match=words):
        spatial_map(field, tokens, (4, 4), **options)


# ---------------------------------------------------------------- told


def test_the_plan_is_public_and_logged(caplog):
    with caplog.at_level(logging.DEBUG, logger="tdsm"):
        chosen = plan(backend="eager")
    assert str(chosen) in caplog.text
    assert tdsm.plan_decoding is plan_decoding
    assert chosen.reason == "the caller's choice"


def test_what_is_planned_is_what_is_done(monkeypatch):
    """The plan that a caller asks for is the one that decoding of the same shapes follows."""
    field, tokens = small_field(torch.float32), torch.randn(2, 5, 14)
    asked = plan_decoding(field, 10, field.queries(grid((4, 4))), channels=1)
    done = []
    monkeypatch.setattr(
        "tdsm.decomposition.exact.plan_decoding", lambda *a, **k: done.append(plan_decoding(*a, **k)) or done[0]
    )
    spatial_map(field, tokens, (4, 4))
    assert done == [asked]
