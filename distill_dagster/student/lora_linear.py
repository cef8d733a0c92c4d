"""A LoRA layer that computes in the number format of the base weights.

PEFT keeps adapters in float32, which training needs, and computes them in float32 too. On bfloat16 weights it then
converts every input and output. Here the weights stay in float32 and only the products are computed in the format of
the input, with one fused addition. Files and names of weights are PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear


class LoraLinear(Linear):
    """PEFT's LoRA of a linear layer, with a faster forward pass while one adapter is trained."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or args or kwargs or len(self.active_adapters) != 1:
            return super().forward(x, *args, **kwargs)
        [name] = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_B[name].bias is not None:
            return super().forward(x)
        out = self.base_layer(x)
        down = self.lora_A[name].weight.to(x.dtype) * self.scaling[name]
        up = self.lora_B[name].weight.to(x.dtype)
        hidden = torch.nn.functional.linear(self.lora_dropout[name](x), down)
        return torch.addmm(out.flatten(0, -2), hidden.flatten(0, -2), up.T).view_as(out)
