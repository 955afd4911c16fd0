"""AdamW for a pack: every member has its own learning rate and weight decay, and decay reaches every parameter.

Conventions. Parameters, gradients and moments are flat, (E, n) float32; `step` counts from 1. Loshchilov and Hutter
2019: weights are multiplied by 1 - lr wd first, then moved by Adam. The order of operations is that of
`torch.optim.AdamW`, so that one member on a CPU gives its numbers bit for bit.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamW:
    """Settings that a pack shares."""

    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    warmup: int = 10
    clip: float = 0.0

    def factor(self, step: int) -> float:
        """Return the share of the learning rate at a step: linear over the first `warmup` steps."""
        return min(1.0, step / self.warmup) if self.warmup else 1.0

    def update(
        self,
        weights: Tensor,
        gradient: Tensor,
        mean: Tensor,
        square: Tensor,
        step: int,
        lr: list[float],
        wd: list[float],
    ) -> None:
        """Move weights and moments in place, member by member."""
        warm = self.factor(step)
        for e, (rate, decay) in enumerate(zip(lr, wd, strict=True)):
            rate = rate * warm
            w, g, m, v = weights[e], gradient[e], mean[e], square[e]
            if self.clip:
                g = g * (self.clip / (g.norm() + 1e-6)).clamp(max=1.0)
            w.mul_(1 - rate * decay)
            m.lerp_(g, 1 - self.beta1)
            v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
            size = v.sqrt().div_(math.sqrt(1 - self.beta2**step)).add_(self.eps)
            w.addcdiv_(m, size, value=-rate / (1 - self.beta1**step))

    def update_on_device(
        self, weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: Tensor, lr: Tensor, wd: Tensor
    ) -> None:
        """Do the same for all members at once; step is a float64 tensor, so that a CUDA graph can replay this.

        lr, wd : (E, 1) float64 on the device.
        """
        warm = (step / self.warmup).clamp(max=1.0) if self.warmup else torch.ones_like(step)
        rate = lr * warm
        if self.clip:
            gradient = gradient * (self.clip / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        weights.mul_((1 - rate * wd).float())
        mean.lerp_(gradient, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        size = (square.sqrt() / (1 - self.beta2**step).sqrt().float()).add_(self.eps)
        weights.sub_(mean / size * (rate / (1 - self.beta1**step)).float())
