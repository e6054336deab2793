"""What `strategy="auto"` decides: how tokens are decoded, where, and how many at once; and why."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from tdsm.base.device import room
from tdsm.base.errors import UsageError
from tdsm.decomposition.definition import Queries, default_chunk
from tdsm.decomposition.kernels.gated_sum import BACKENDS, fastest, serves
from tdsm.decomposition.separated import MAP_FLOATS
from tdsm.tokenfield import TokenField

log = logging.getLogger("tdsm")


@dataclass(frozen=True)
class Plan:
    """How tokens will be decoded alone."""

    strategy: str  # a name in STRATEGIES
    backend: str | None  # of the separated readout: "eager", "cpu", "gpu"; None where it is not separated
    chunk: int  # (image, token) pairs decoded at once
    reason: str


def plan_decoding(
    field: TokenField,
    pairs: int,
    queries: Queries,
    *,
    channels: int = 3,
    chunk: int | None = None,
    backend: str | None = None,
) -> Plan:
    """Choose strategy, backend and chunk from shapes, device and dtype.

    Exact decoding is never slower than the loop, so it is always the strategy. The compiled kernel serves float32
    on CPU and GPU, and half precision, whose sums are float32; elsewhere it is the eager form. Whether a CPU has its
    kernel is decided once a process (`kernels.cpu.describe`), so the same call takes the same way each time.

    >>> from tdsm import FieldConfig, NeuralField
    >>> field = NeuralField(FieldConfig(widths=(16,), num_latents=8, mapping_dim=6))
    >>> plan_decoding(field, pairs=8, queries=field.queries(torch.zeros(64, 2))).strategy
    'exact'

    Args:
        field: The field that decodes.
        pairs: (image, token) pairs to decode.
        queries: Query features, (points, width).
        channels: Channels the readout computes: 1 for the reduction to the mean, else all. What a final norm
            stands before is the width, whatever the channels.
        chunk: (image, token) pairs at once, if the caller chose it.
        backend: What computes, if the caller chose it.

    Raises:
        UsageError: If the backend is unknown or does not serve this device and dtype.
    """
    readout = field.separable_readout()
    if readout is None:
        chosen = chunk or default_chunk(queries)
        return _logged(Plan("exact", None, chosen, "this readout does not separate: read out q + c_k, no attention"))
    outputs = channels if readout.final_norm is None else len(readout.output_weight)
    dtype = torch.promote_types(queries.dtype, readout.hidden_weight.dtype)
    summed = queries.new_empty(0, dtype=torch.promote_types(dtype, torch.float32))
    if backend is None:
        backend = fastest(summed, outputs)
        reason = f"the fastest there is for {outputs} sums in {summed.dtype} on {summed.device.type}"
    else:
        reason = "the caller's choice"
        _check_backend(backend, summed, outputs)
    chosen = chunk or max(1, min(pairs, _map_floats(queries) // (len(queries) * outputs)))
    return _logged(Plan("exact", backend, chosen, reason))


def _check_backend(backend: str, summed: Tensor, channels: int) -> None:
    if backend not in BACKENDS or not serves(backend, summed, channels):
        possible = ", ".join(name for name in BACKENDS if serves(name, summed, channels))
        raise UsageError(
            f"component_images: backend {backend!r} does not serve sums in {summed.dtype} on {summed.device.type} "
            f"here, expected one of {possible}, or None for the fastest."
        )


def _map_floats(queries: Queries) -> int:
    if queries.device.type != "cuda":
        return MAP_FLOATS
    return max(MAP_FLOATS, room(queries.device) // 16)  # a quarter of what is free, in floats of 4 bytes


def _logged(plan: Plan) -> Plan:
    log.debug("%s", plan)
    return plan
