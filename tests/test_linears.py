"""The linear layers that stand for torch's own."""

import pytest
import torch

from parley.engine.runners.seq2seq import int8, linears

CAPABILITIES = torch.cpu.get_capabilities()
SAME_BITS = ["float32", *([] if CAPABILITIES.get("amx_bf16") else ["bfloat16"])]
"""Precisions whose kernels sum in one order for any number of rows; AMX's for bfloat16 do not."""


@pytest.fixture
def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(640, 384).requires_grad_(False)


@pytest.mark.skipif(not int8.supported(), reason="needs a CPU with VNNI")
def test_an_int8_row_does_not_depend_on_other_rows(linear: torch.nn.Linear) -> None:
    """Fails when inputs share a scale: one user's outlier would then change another user's answer."""
    small = int8.Int8Linear(linear)
    rows = torch.randn(9, 640) * torch.logspace(-2, 4, 9)[:, None]
    together = small(rows)
    assert torch.equal(together, torch.cat([small(row[None]) for row in rows]))
    exact = linear(rows)
    assert ((together - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.03


@pytest.mark.skipif(not CAPABILITIES.get("avx512_bf16"), reason="known of AVX-512's kernels only")
@pytest.mark.parametrize("precision", SAME_BITS)
def test_a_packed_row_does_not_depend_on_other_rows(precision: str) -> None:
    """Fails when one row alone, or a batch of another size, is summed in another order."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(640, 384).to(getattr(torch, precision)).requires_grad_(False)
    packed = linears.PackedLinear(linear)
    rows = torch.randn(70, 640, dtype=getattr(torch, precision))
    together = packed(rows)
    for count in (1, 2, 3, 8, 17, 33):
        parts = [packed(part) for part in rows.split(count)]
        assert torch.equal(together, torch.cat(parts)), f"{count} rows at a time"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_prepared_layers_compute_the_same(linear: torch.nn.Linear, precision: str) -> None:
    """Fails when packing loses a bias, a dimension, or more than rounding."""
    model = torch.nn.Sequential(torch.nn.Sequential(linear)).to(getattr(torch, precision))
    inputs = torch.randn(2, 5, 640, dtype=getattr(torch, precision))
    expected = model(inputs)
    linears.prepare(model, precision, torch.device("cpu"))
    torch.testing.assert_close(model(inputs), expected)
