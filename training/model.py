"""A Llama-shaped decoder in plain torch, whose weights carry the names that transformers expects."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    vocabulary: int = 3072
    width: int = 192
    layers: int = 6
    heads: int = 3
    hidden: int = 512
    context: int = 1024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x: (batch, length, width); cos, sin: (length, head width); mask: (length, length), 0 or -inf.

        Attention is written out: on CPU in bf16 it is two to four times as fast as torch's own.
        """
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (proj(x).view(split).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        scores = q @ k.transpose(-1, -2) * split[-1] ** -0.5 + mask
        mixed = torch.softmax(scores, -1).to(v.dtype) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class FeedForward(nn.Module):
    """A gated feed-forward layer (SwiGLU)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, length, width)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer, normed before each half."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x: (batch, length, width)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, shape.norm_eps)


class Model(nn.Module):
    """The language model; the embedding doubles as the output layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        self.apply(_init)
        for layer in self.modules():
            if isinstance(layer, Layer):
                for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    nn.init.normal_(out.weight, std=0.02 / (2 * shape.layers) ** 0.5)

    def forward(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """ids: (batch, length); wanted: (batch, length) bool. Gives hidden states (number wanted, width)."""
        x = self.model.embed_tokens(ids)
        dtype = torch.bfloat16 if torch.is_autocast_enabled(ids.device.type) else x.dtype
        cos, sin, mask = (part.to(dtype) for part in _positions(self.shape, ids.shape[1], ids.device))
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return x[wanted]

    def logits(self, x: Tensor) -> Tensor:
        """x: (number, width). Gives (number, vocabulary)."""
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def loss(self, ids: Tensor, learn: Tensor) -> Tensor:
        """Mean cross entropy over the tokens marked in learn: (batch, length) bool."""
        return self._cross_entropy(self(ids[:, :-1], learn[:, 1:]), ids[:, 1:][learn[:, 1:]])

    def compile_parts(self) -> None:
        """Compile what a step spends its time in, which needs a C++ compiler: a third faster on CPU."""
        for layer in self.model.layers:
            layer.compile(dynamic=True)
        self._cross_entropy = torch.compile(self._cross_entropy, dynamic=True)  # type: ignore[method-assign]

    def _cross_entropy(self, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(x).float(), targets)


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def _positions(shape: Shape, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rotary cosines and sines (length, head width) and the causal mask (length, length)."""
    half = torch.arange(0, shape.width // shape.heads, 2, device=device) / (shape.width // shape.heads)
    angles = torch.outer(torch.arange(length, device=device).float(), shape.rope_theta**-half)
    angles = torch.cat((angles, angles), -1)
    mask = torch.full((length, length), float("-inf"), device=device).triu(1)
    return angles.cos(), angles.sin(), mask
