"""8-bit linear layers with a scale per output and a scale per row of the input.

torch's own dynamic quantization takes one input scale for the whole batch, so that one user's text would change
another's numbers, and is deprecated. Here each row is brought to the range of 8 bits by its own maximum, as in
LLM.int8() (Dettmers et al. 2022, section 3.1), and the product is oneDNN's, exact in 32-bit integers.
"""

import torch
from torch import Tensor, nn

_LEVELS = 127
_ZERO = 128
"""oneDNN multiplies unsigned by signed bytes fastest: inputs are stored with this offset."""


def supported() -> bool:
    """Whether this CPU has the instructions that make 8 bits both exact and fast."""
    features = torch.cpu.get_capabilities()
    return "onednn" in torch.backends.quantized.supported_engines and bool(
        features.get("avx512_vnni") or features.get("avx_vnni")
    )


class Int8Linear(nn.Module):
    """Stands for a float32 `nn.Linear`; input and output are float32.

    A row's numbers are the same to the bit whatever the other rows are; with AMX, in layers of 384 outputs and more.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scales = (weight.abs().amax(dim=1) / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (weight / scales[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(codes, None)
        self.scales = scales
        self.offsets = torch.zeros(len(scales), dtype=torch.int32)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        rows = inputs.reshape(-1, inputs.size(-1))
        peaks = rows.abs().amax(dim=1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
        codes = (rows * (_LEVELS / peaks)).round_().add_(_ZERO).to(torch.uint8)
        outputs = torch.ops.onednn.qlinear_pointwise(
            codes, 1 / _LEVELS, _ZERO, self.weight, self.scales, self.offsets, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        outputs = outputs.mul_(peaks) if self.bias is None else torch.addcmul(self.bias, outputs, peaks)
        return outputs.view(*inputs.shape[:-1], -1)
