"""The model as OpenVINO IR, built operation by operation.

The graph is stateful: each layer reads its cache, appends the new keys and values and writes it back, in the
pattern that OpenVINO GenAI turns into paged attention.
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo
from openvino_tokenizers import convert_tokenizer
from transformers import AutoTokenizer

from training.model import Model

_COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Node = Any  # an operation, or one of its outputs


def write_ir(model: Model, folder: Path) -> None:
    """Write `openvino/` into the model folder: the graph with fp16 weights, tokenizer and configs.

    The graph's other numbers stay float32: rotary speeds in fp16 would move every logit by a thousandth.
    """
    target = folder / "openvino"
    target.mkdir(exist_ok=True)
    ov.save_model(_Graph(model).build(), target / "openvino_model.xml", compress_to_fp16=False)
    tokenizer, detokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(folder), with_detokenizer=True)
    ov.save_model(tokenizer, target / "openvino_tokenizer.xml")
    ov.save_model(detokenizer, target / "openvino_detokenizer.xml")
    for name in _COPIED:
        (target / name).write_bytes((folder / name).read_bytes())


class _Graph:
    """The graph while it is being built. Shapes: (batch, heads, length, head width) in attention."""

    def __init__(self, model: Model) -> None:
        self.weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
        self.shape = model.shape
        self.ids, self.mask = _input("input_ids"), _input("attention_mask")
        self.positions, self.beam = _input("position_ids"), ops.parameter([-1], np.int32)
        self.beam.output(0).set_names({"beam_idx"})
        self.beam.set_friendly_name("beam_idx")
        self.sinks: list[ov.Node] = []

    def build(self) -> ov.Model:
        """Token ids (batch, length) to `logits` (batch, length, vocabulary)."""
        embedding = self._weight("model.embed_tokens.weight")
        x = ops.gather(embedding, self.ids, np.int64(0))
        self.cos, self.sin = self._rotary()
        self.bias = self._causal_bias()
        for number in range(self.shape.layers):
            x = self._layer(x, f"model.layers.{number}.")
        logits = ops.matmul(self._norm(x, "model.norm"), embedding, False, True)
        result = ops.result(logits)
        result.output(0).set_names({"logits"})
        return ov.Model([result], self.sinks, [self.ids, self.mask, self.positions, self.beam], "pocket")

    def _layer(self, x: Node, name: str) -> Node:
        x = ops.add(x, self._attention(self._norm(x, name + "input_layernorm"), name + "self_attn."))
        return ops.add(x, self._feed_forward(self._norm(x, name + "post_attention_layernorm"), name + "mlp."))

    def _attention(self, x: Node, name: str) -> Node:
        q, k, v = map(self._heads, self._linears(x, [f"{name}{part}_proj" for part in "qkv"]))
        k = self._cached(self._rotated(k), name + "key")
        v = self._cached(v, name + "value")
        mixed = ops.scaled_dot_product_attention(self._rotated(q), k, v, self.bias)
        merged = ops.reshape(ops.transpose(mixed, [0, 2, 1, 3]), [0, 0, self.shape.width], True)
        return self._linear(merged, name + "o_proj")

    def _feed_forward(self, x: Node, name: str) -> Node:
        gate, up = self._linears(x, [name + "gate_proj", name + "up_proj"])
        return self._linear(ops.multiply(ops.swish(gate), up), name + "down_proj")

    def _heads(self, x: Node) -> Node:
        split = ops.reshape(x, [0, 0, self.shape.heads, self._head_width], True)
        return ops.transpose(split, [0, 2, 1, 3])

    @property
    def _head_width(self) -> int:
        return self.shape.width // self.shape.heads

    def _cached(self, new: Node, name: str) -> Node:
        """Append to the cache, reordered for beams, and give the whole."""
        shape = ov.PartialShape([-1, self.shape.heads, -1, self._head_width])
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = shape, ov.Type.f32, name
        variable = Variable(info)
        batch = ops.gather(ops.shape_of(self.ids), np.int64(0), np.int64(0))
        sizes = [ops.unsqueeze(batch, 0), *(np.array([n], np.int64) for n in (self.shape.heads, 0, self._head_width))]
        empty = ops.broadcast(np.float32(0), ops.concat(sizes, 0))
        past = ops.gather(ops.read_value(empty, variable), self.beam, np.int64(0))
        whole = ops.concat([past, new], 2)
        self.sinks.append(ops.assign(whole, variable))
        return whole

    def _rotary(self) -> tuple[Node, Node]:
        """Cosines and sines (batch, 1, length, head width) of the positions."""
        half = np.arange(0, self._head_width, 2, dtype=np.float32) / self._head_width
        speeds = np.concatenate([self.shape.rope_theta**-half] * 2)[None, None, None].astype(np.float32)
        places = ops.unsqueeze(ops.convert(self.positions, np.float32), np.array([1, 3]))
        angles = ops.multiply(places, speeds)
        return ops.cos(angles), ops.sin(angles)

    def _rotated(self, x: Node) -> Node:
        """Rotary positions, in the one spelling of them that OpenVINO makes a single operation of (`RoPEFusion`)."""
        half = self._head_width // 2
        first, second = ops.variadic_split(x, np.int64(3), np.array([half, half])).outputs()
        turned = ops.concat([ops.multiply(second, np.float32(-1)), first], -1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(turned, self.sin))

    def _causal_bias(self) -> Node:
        """0 where a key may be seen and a large negative number elsewhere: (batch, 1, length, keys)."""
        keys = ops.gather(ops.shape_of(self.mask), np.int64(1), np.int64(0))
        at = ops.unsqueeze(ops.range(np.int64(0), keys, np.int64(1), "i64"), np.array([0, 1, 2]))
        is_past = ops.less_equal(at, ops.unsqueeze(self.positions, np.array([1, 3])))
        is_text = ops.equal(ops.unsqueeze(self.mask, np.array([1, 2])), np.int64(1))
        return ops.select(ops.logical_and(is_past, is_text), np.float32(0), np.float32(-65504))

    def _norm(self, x: Node, name: str) -> Node:
        square = ops.reduce_mean(ops.multiply(x, x), np.array([-1]), True)
        scale = ops.divide(np.float32(1), ops.sqrt(ops.add(square, np.float32(self.shape.norm_eps))))
        return ops.multiply(ops.multiply(x, scale), ops.unsqueeze(self._weight(name + ".weight"), np.array([0, 1])))

    def _linear(self, x: Node, name: str) -> Node:
        return ops.matmul(x, self._weight(name + ".weight"), False, True)

    def _linears(self, x: Node, names: list[str]) -> list[Node]:
        """Several projections of one input as one multiplication: at one user, each call costs as much as its work."""
        widths = np.array([len(self.weights[name + ".weight"]) for name in names])
        whole = ops.matmul(x, self._weight(*(name + ".weight" for name in names)), False, True)
        return ops.variadic_split(whole, np.int64(2), widths).outputs()

    def _weight(self, *names: str) -> Node:
        """Weights, one below the other, as float32; stored as fp16, which holds what bfloat16 has of such numbers."""
        rows = np.concatenate([self.weights[name] for name in names])
        return ops.convert(ops.constant(rows.astype(np.float16)), np.float32)


def _input(name: str) -> ov.Node:
    node = ops.parameter([-1, -1], np.int64)
    node.set_friendly_name(name)
    node.output(0).set_names({name})
    return node
