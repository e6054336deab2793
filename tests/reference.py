"""The whole method in NumPy float64, written from its equations: one image at a time, nothing fast.

`state` is a dictionary of arrays under the names of `NeuralField.state_dict()`; nothing else is taken from the
library, so an agreement is between two independent implementations.
"""

import numpy as np
from scipy.special import erf


def arrays(module):
    """Return the weights of a torch module as float64 arrays."""
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def grid(size):
    """Coordinates of a grid over [-1, 1], corners included, last axis fastest: (points, axes)."""
    axes = [np.linspace(-1, 1, n) for n in size]
    return np.array([[axis[i] for axis, i in zip(axes, index, strict=True)] for index in np.ndindex(*size)])


def fourier(coords, matrix):
    """[sin(x·B), cos(x·B)]."""
    return np.concatenate([np.sin(coords @ matrix), np.cos(coords @ matrix)], axis=-1)


def sinusoids(count, width):
    """Column 2j: sin(p · exp(−2j · ln(10000) / width)); column 2j + 1: the cosine."""
    table = np.empty((count, width))
    for position in range(count):
        for column in range(width):
            angle = position * np.exp(-2 * (column // 2) * np.log(10000) / width)
            table[position, column] = np.cos(angle) if column % 2 else np.sin(angle)
    return table


def norm(x, state, name):
    """LN(x) = (x − mean) / √(variance + 1e-5) · γ + β over features."""
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def softmax(x):
    """Softmax over the last axis."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def gelu(x):
    """x · Φ(x), the exact one."""
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def attention(queries, context, state, name, heads):
    """W_o · concat_h softmax(Q_h LN(q) · (K_h LN(Z))ᵀ / √d_h) V_h LN(Z) + b_o; `context=None`: self-attention."""
    queries = norm(queries, state, f"{name}.norm")
    context = queries if context is None else norm(context, state, f"{name}.norm_context")
    query_weight = state[f"{name}.to_q.weight"]
    key_weight, value_weight = np.split(state[f"{name}.to_kv.weight"], 2)
    width = query_weight.shape[0] // heads
    outputs = []
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        q, k, v = queries @ query_weight[rows].T, context @ key_weight[rows].T, context @ value_weight[rows].T
        outputs.append(softmax(q @ k.T / np.sqrt(width)) @ v)
    return np.concatenate(outputs, -1) @ state[f"{name}.to_out.weight"].T + state[f"{name}.to_out.bias"]


def feedforward(x, state, name):
    """W_2 · [u ⊙ GELU(g)] + b_2 with [u, g] = W_1 LN(x) + b_1."""
    hidden = norm(x, state, f"{name}.norm") @ state[f"{name}.hidden.weight"].T + state[f"{name}.hidden.bias"]
    value, gate = np.split(hidden, 2, axis=-1)
    return value * gelu(gate) @ state[f"{name}.output.weight"].T + state[f"{name}.output.bias"]


def encode(state, config, image, keep=None):
    """Tokens of one image (channels, *size): cascade of encoder blocks, then the processor."""
    coords = grid(image.shape[1:])
    context = np.concatenate([image.reshape(len(image), -1).T, fourier(coords, state["fourier.matrix"])], -1)
    context = context if keep is None else context[keep]
    previous = None
    for level, width in enumerate(config.widths):
        name = f"encoder.{level}"
        x = state[f"{name}.latents"]
        x = x + attention(x, context, state, f"{name}.cross_attention", config.cross_heads)
        if previous is not None and previous.shape[-1] == width:
            x = x + previous
        elif previous is not None:
            x = x + previous @ state[f"{name}.project.weight"].T + state[f"{name}.project.bias"]
        x = x + attention(x, None, state, f"{name}.self_attention", config.self_heads)
        previous = x + feedforward(x, state, f"{name}.feedforward")
    x = previous
    for depth in range(config.processor_depth):
        x = x + attention(x, None, state, f"processor.{depth}.self_attention", config.self_heads)
        x = x + feedforward(x, state, f"processor.{depth}.feedforward")
    return x


def decode_queries(state, config, tokens, queries):
    """Values of one image's tokens at query features: (points, channels)."""
    x = attention(queries, tokens, state, "decoder_attention", config.cross_heads)
    if config.has_query_residual:
        x = x + queries
    if config.has_decoder_feedforward:
        x = x + feedforward(x, state, "decoder_feedforward")
    return x @ state["to_channels.weight"].T + state["to_channels.bias"]


def decode(state, config, tokens, coords):
    """Values of one image's tokens at coordinates: (points, channels)."""
    return decode_queries(state, config, tokens, fourier(coords, state["fourier.matrix"]))


def decompose(state, config, tokens, coords):
    """Token-wise decoding by its definition, once per token: (tokens, points, channels)."""
    return np.stack([decode(state, config, tokens[k : k + 1], coords) for k in range(len(tokens))])


def spatial_map(components, reduction):
    """(tokens, points, channels) -> (points, maps)."""
    if reduction == "mean":
        return components.mean(-1).T
    if reduction == "l2":
        return np.sqrt((components**2).sum(-1)).T
    return np.stack([c for component in components for c in component.T], axis=-1)  # rgb, token-major
