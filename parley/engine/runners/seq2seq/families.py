"""Where each architecture keeps the parts of its decoder, and how they differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parley.engine.runners.seq2seq.decoder import Block, Decoder


@dataclass(frozen=True)
class Family:
    """One architecture."""

    build: Callable[[Any], Decoder]
    """Takes the decoder of a transformers model apart; the model keeps its encoder only."""
    heads: str
    """The config's name for the number of attention heads."""
    scaled: bool
    """Whether attention scores are divided by the square root of the head's size."""


class LearnedEmbedding(nn.Module):
    """Token plus learned position.

    Args:
        decoder: BART's, Blenderbot's or BlenderbotSmall's.
        norm_tokens: applied to the tokens' embedding (BlenderbotSmall).
        norm_sum: applied to the sum (BART).
    """

    def __init__(self, decoder: Any, norm_tokens: nn.Module, norm_sum: nn.Module) -> None:
        super().__init__()
        self.tokens, self.positions = decoder.embed_tokens, decoder.embed_positions.weight
        self.offset = getattr(decoder.embed_positions, "offset", 0)
        self.norm_tokens, self.norm_sum = norm_tokens, norm_sum

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(rows,) and (rows,) to (rows, model size)."""
        embedded: Tensor = self.norm_tokens(self.tokens(tokens))
        normed: Tensor = self.norm_sum(embedded + self.positions[positions + self.offset])
        return normed


class TokenEmbedding(nn.Module):
    """Token alone: T5 has its positions in attention."""

    def __init__(self, tokens: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(rows,) to (rows, model size); positions are not used."""
        embedded: Tensor = self.tokens(tokens)
        return embedded


class RelativeBias:
    """T5's bias for the distance between a token and an earlier one.

    Args:
        attention: the first layer's self-attention, whose bias holds for all layers.
    """

    def __init__(self, attention: Any) -> None:
        self._table = attention.relative_attention_bias
        self._bucket = attention._relative_position_bucket
        self._buckets = attention.relative_attention_num_buckets
        self._max_distance = attention.relative_attention_max_distance

    def __call__(self, distances: Tensor) -> Tensor:
        """(slots, nodes) of distances from 0 up to (slots, heads, 1, nodes)."""
        bias: Tensor = self._table(self._bucket(-distances, False, self._buckets, self._max_distance))
        return bias.permute(0, 2, 1)[:, :, None]


class FeedForward(nn.Module):
    """BART's feed-forward branch."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation = layer.fc1, layer.fc2, layer.activation_fn

    def forward(self, hidden: Tensor) -> Tensor:
        """(rows, model size) to the same."""
        output: Tensor = self.fc2(self.activation(self.fc1(hidden)))
        return output


class Head(nn.Module):
    """Scaled hidden states to logits, with a bias."""

    def __init__(self, linear: nn.Module, scale: float, bias: Tensor | float) -> None:
        super().__init__()
        self.linear, self.scale, self.bias = linear, scale, bias

    def forward(self, hidden: Tensor) -> Tensor:
        """(rows, model size) to (rows, vocabulary)."""
        logits: Tensor = self.linear(hidden * self.scale) + self.bias
        return logits


def _blenderbot(model: Any) -> Decoder:
    return _bart_like(model, False, nn.Identity(), nn.Identity(), model.model.decoder.layer_norm)


def _blenderbot_small(model: Any) -> Decoder:
    return _bart_like(model, True, model.model.decoder.layernorm_embedding, nn.Identity(), nn.Identity())


def _bart(model: Any) -> Decoder:
    return _bart_like(model, True, nn.Identity(), model.model.decoder.layernorm_embedding, nn.Identity())


def _bart_like(model: Any, post_norm: bool, norm_tokens: nn.Module, norm_sum: nn.Module, norm: nn.Module) -> Decoder:
    decoder = model.model.decoder
    # Blenderbot and BART scale in their embedding module; BlenderbotSmall's decoder, unlike its encoder, not at all.
    embed = LearnedEmbedding(decoder, norm_tokens, norm_sum)
    blocks = [_bart_block(layer, post_norm) for layer in _taken(decoder.layers)]
    return Decoder(embed, blocks, norm, Head(model.lm_head, 1.0, model.final_logits_bias))


def _bart_block(layer: Any, post_norm: bool) -> Block:
    attention, cross = layer.self_attn, layer.encoder_attn
    return Block(
        post_norm=post_norm,
        norms=[layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm],
        qkv=_fused(attention.q_proj, attention.k_proj, attention.v_proj),
        out=attention.out_proj,
        cross_q=cross.q_proj,
        cross_kv=_fused(cross.k_proj, cross.v_proj),
        cross_out=cross.out_proj,
        feed=FeedForward(layer),
    )


def _t5(model: Any) -> Decoder:
    decoder, config = model.decoder, model.config
    relative = RelativeBias(decoder.block[0].layer[0].SelfAttention)
    blocks = [_t5_block(block) for block in _taken(decoder.block)]
    head = Head(model.lm_head, config.d_model**-0.5 if config.scale_decoder_outputs else 1.0, 0.0)
    return Decoder(TokenEmbedding(decoder.embed_tokens), blocks, decoder.final_layer_norm, head, relative)


def _t5_block(block: Any) -> Block:
    attention, cross, feed = block.layer
    return Block(
        post_norm=False,
        norms=[attention.layer_norm, cross.layer_norm, feed.layer_norm],
        qkv=_fused(attention.SelfAttention.q, attention.SelfAttention.k, attention.SelfAttention.v),
        out=attention.SelfAttention.o,
        cross_q=cross.EncDecAttention.q,
        cross_kv=_fused(cross.EncDecAttention.k, cross.EncDecAttention.v),
        cross_out=cross.EncDecAttention.o,
        feed=feed.DenseReluDense,
    )


def _taken(layers: Any) -> Any:
    """The layers one by one, each removed from the model, so that no weight is in memory twice for long."""
    while layers:
        yield layers.pop(0)


def _fused(*parts: nn.Linear) -> nn.Linear:
    """One linear layer that gives the outputs of several side by side."""
    weight = torch.cat([part.weight for part in parts])
    fused = nn.Linear(weight.size(1), weight.size(0), bias=parts[0].bias is not None, device="meta")
    fused.weight = nn.Parameter(weight, requires_grad=False)
    if parts[0].bias is not None:
        fused.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
    return fused


FAMILIES = {
    "bart": Family(_bart, "decoder_attention_heads", True),
    "blenderbot": Family(_blenderbot, "decoder_attention_heads", True),
    "blenderbot-small": Family(_blenderbot_small, "decoder_attention_heads", True),
    "t5": Family(_t5, "num_heads", False),
}
