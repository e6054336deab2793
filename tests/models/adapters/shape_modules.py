"""Small shape decoders with the forms and names that `shape_field` knows, written from their equations."""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, LATENT = 24, 3, 5


class Fourier(nn.Module):
    """Coordinates with the sines and cosines of their multiples by powers of two."""

    def __init__(self, count=2, scale=1.0):
        super().__init__()
        self.register_buffer("frequencies", scale * 2.0 ** torch.arange(count))
        self.out_dim = 3 * (2 * count + 1)

    def forward(self, x):
        phase = (x[..., None] * self.frequencies).flatten(-2)
        return torch.cat([x, phase.sin(), phase.cos()], -1)


def attend(q, k, v):
    """Softmax attention of (batch, tokens, heads, dim), heads side by side again."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# ---------------------------------------------------------------- TripoSG


class AttnProcessor2_0:
    """Heads side by side, as usual."""

    def split(self, key, value, heads):
        return key.unflatten(-1, (heads, -1)), value.unflatten(-1, (heads, -1))

    def choose(self, q, k, v):
        return k, v

    def __call__(self, attn, x, context):
        context = attn.norm_cross(context) if attn.norm_cross is not None else context
        q = attn.to_q(x).unflatten(-1, (attn.heads, -1))
        k, v = self.split(attn.to_k(context), attn.to_v(context), attn.heads)
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        return attn.to_out[1](attn.to_out[0](attend(q, *self.choose(q, k, v))))


class TripoSGAttnProcessor2_0(AttnProcessor2_0):
    """Keys and values joined, then cut into heads, then each head into its key and its value."""

    def split(self, key, value, heads):
        return torch.cat([key, value], -1).unflatten(-1, (heads, -1)).chunk(2, dim=-1)


class FlashTripoSGAttnProcessor2_0(TripoSGAttnProcessor2_0):
    """The two tokens with the largest mean score only."""

    def choose(self, q, k, v):
        best = torch.einsum("bnhd,bkhd->bhk", q, k).topk(2).indices.mT[..., None].expand(-1, -1, -1, k.shape[-1])
        return k.gather(1, best), v.gather(1, best)


class DiffusersAttention(nn.Module):
    def __init__(self, processor, qk_norm, norm_cross=True):
        super().__init__()
        self.heads, self.processor = HEADS, processor
        self.norm_cross = nn.LayerNorm(WIDTH) if norm_cross else None
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.norm_q = nn.RMSNorm(WIDTH // HEADS, eps=1e-6) if qk_norm else None
        self.norm_k = nn.RMSNorm(WIDTH // HEADS, eps=1e-6) if qk_norm else None
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0)])

    def forward(self, x, context):
        return self.processor(self, x, context)


class Gelu(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x):
        return F.gelu(self.proj(x))


class DiTBlock(nn.Module):
    """Self-attention to all, or cross-attention to other tokens; then a feed-forward."""

    def __init__(self, is_cross, processor, qk_norm=False):
        super().__init__()
        self.norm1 = self.norm2 = self.attn1 = self.attn2 = None
        if is_cross:
            self.norm2, self.attn2 = nn.LayerNorm(WIDTH), DiffusersAttention(processor, qk_norm)
        else:
            self.norm1, self.attn1 = nn.LayerNorm(WIDTH), DiffusersAttention(processor, qk_norm, norm_cross=False)
        self.norm3 = nn.LayerNorm(WIDTH)
        self.ff = nn.Sequential(Gelu(), nn.Dropout(0.0), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x, encoder_hidden_states=None):
        if self.attn1 is not None:
            x = x + self.attn1(self.norm1(x), self.norm1(x))
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), encoder_hidden_states)
        return x + self.ff(self.norm3(x))


class TripoSGDecoder(nn.Module):
    def __init__(self, in_dim, processor, qk_norm):
        super().__init__()
        own = [DiTBlock(False, TripoSGAttnProcessor2_0()) for _ in range(2)]
        self.blocks = nn.ModuleList([*own, DiTBlock(True, processor, qk_norm)])
        self.proj_query = nn.Linear(in_dim, WIDTH)
        self.norm_out, self.proj_out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, sample, queries, kv_cache=None):
        if kv_cache is None:
            for block in self.blocks[:-1]:
                sample = block(sample)
            kv_cache = sample
        x = self.blocks[-1](self.proj_query(queries), encoder_hidden_states=kv_cache)
        return -self.proj_out(self.norm_out(x)), kv_cache


class TripoSGVAEModel(nn.Module):
    def __init__(self, processor=None, qk_norm=False):
        super().__init__()
        self.embedder = Fourier()
        self.post_quant = nn.Linear(LATENT, WIDTH)
        self.decoder = TripoSGDecoder(self.embedder.out_dim, processor or TripoSGAttnProcessor2_0(), qk_norm)

    def decode_points(self, latents, points):
        return self.decoder(self.post_quant(latents), self.embedder(points))[0]


# ---------------------------------------------------------------- Hunyuan3D, Michelangelo


class CrossAttentionProcessor:
    def __call__(self, attn, q, k, v):
        return attend(q, k, v)


class FlashVDMCrossAttentionProcessor(CrossAttentionProcessor):
    """The first two tokens only."""

    def __call__(self, attn, q, k, v):
        return attend(q, k[:, :2], v[:, :2])


class HeadAttention(nn.Module):
    def __init__(self, width, heads, qk_norm, has_processor):
        super().__init__()
        self.heads = heads
        self.q_norm = nn.LayerNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        if has_processor:
            self.attn_processor = CrossAttentionProcessor()

    def forward(self, q, kv):
        q = q.unflatten(-1, (self.heads, -1))
        k, v = kv.unflatten(-1, (self.heads, -1)).chunk(2, dim=-1)
        return getattr(self, "attn_processor", CrossAttentionProcessor())(self, self.q_norm(q), self.k_norm(k), v)


class MultiheadCrossAttention(nn.Module):
    def __init__(self, width, heads, **options):
        super().__init__()
        self.c_q, self.c_kv, self.c_proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.attention = HeadAttention(width, heads, **options)
        self.kv_cache, self.data = False, None

    def forward(self, x, data):
        if self.data is None or not self.kv_cache:
            self.data = self.c_kv(data)
        return self.c_proj(self.attention(self.c_q(x), self.data))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class ResidualCrossAttentionBlock(nn.Module):
    def __init__(self, width, heads, **options):
        super().__init__()
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.attn, self.mlp = MultiheadCrossAttention(width, heads, **options), MLP(width)

    def forward(self, x, data):
        x = x + self.attn(self.ln_1(x), self.ln_2(data))
        return x + self.mlp(self.ln_3(x))


class CrossAttentionDecoder(nn.Module):
    def __init__(self, ratio=1, ln_post=True, qk_norm=False, has_processor=True):
        super().__init__()
        width = WIDTH // ratio
        self.fourier_embedder = Fourier(scale=torch.pi)
        self.query_proj = nn.Linear(self.fourier_embedder.out_dim, width)
        self.downsample_ratio, self.enable_ln_post = ratio, ln_post
        if ratio != 1:
            self.latents_proj = nn.Linear(WIDTH, width)
        self.cross_attn_decoder = ResidualCrossAttentionBlock(
            width, HEADS, qk_norm=qk_norm, has_processor=has_processor
        )
        if ln_post:
            self.ln_post = nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, 1)

    def forward(self, queries=None, latents=None):
        latents = latents if self.downsample_ratio == 1 else self.latents_proj(latents)
        x = self.cross_attn_decoder(self.query_proj(self.fourier_embedder(queries)), latents)
        return self.output_proj(self.ln_post(x) if self.enable_ln_post else x)


class ShapeVAE(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.post_kl = nn.Linear(LATENT, WIDTH)
        self.transformer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
        self.geo_decoder = CrossAttentionDecoder(**options)

    def decode(self, latents):
        return self.transformer(self.post_kl(latents))

    def decode_points(self, latents, points):
        return self.geo_decoder(queries=points, latents=self.decode(latents))


# ---------------------------------------------------------------- 3DShape2VecSet


class PointEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("basis", torch.pi * torch.eye(3).repeat_interleave(2, dim=1))
        self.mlp = nn.Linear(15, WIDTH)

    def forward(self, x):
        phase = torch.einsum("bnd,de->bne", x, self.basis)
        return self.mlp(torch.cat([phase.sin(), phase.cos(), x], 2))


class PreNorm(nn.Module):
    def __init__(self, fn, has_context=False):
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(WIDTH)
        self.norm_context = nn.LayerNorm(WIDTH) if has_context else None

    def forward(self, x, context=None):
        if self.norm_context is None:
            return self.fn(self.norm(x))
        return self.fn(self.norm(x), self.norm_context(context))


class KvAttention(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, context=None):
        projected = (self.to_q(x), *self.to_kv(x if context is None else context).chunk(2, -1))
        return self.to_out(attend(*(t.unflatten(-1, (self.heads, -1)) for t in projected)))


class GegluFeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.output = nn.Linear(WIDTH, 8 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        value, gate = self.hidden(x).chunk(2, -1)
        return self.output(value * F.gelu(gate))


class AutoEncoder(nn.Module):
    def __init__(self, decoder_ff=False):
        super().__init__()
        self.point_embed = PointEmbed()
        self.layers = nn.ModuleList(
            nn.ModuleList([PreNorm(KvAttention(HEADS)), PreNorm(GegluFeedForward())]) for _ in range(2)
        )
        self.decoder_cross_attn = PreNorm(KvAttention(1), has_context=True)
        self.decoder_ff = PreNorm(GegluFeedForward()) if decoder_ff else None
        self.to_outputs = nn.Linear(WIDTH, 1)

    def decode_points(self, latents, points):
        x = latents
        for attention, feedforward in self.layers:
            x = attention(x) + x
            x = feedforward(x) + x
        y = self.decoder_cross_attn(self.point_embed(points), context=x)
        return self.to_outputs(y if self.decoder_ff is None else y + self.decoder_ff(y))


class KLAutoEncoder(AutoEncoder):
    def __init__(self, decoder_ff=False):
        super().__init__(decoder_ff)
        self.proj = nn.Linear(LATENT, WIDTH)

    def decode_points(self, latents, points):
        return super().decode_points(self.proj(latents), points)
