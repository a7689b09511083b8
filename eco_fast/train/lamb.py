"""LAMB as the ECO recipes use it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., ICLR 2020, arXiv 1904.00962, Algorithm 2) in the form of the ECO recipes (Lee & Heo 2024).

    For every tensor w with gradient g, without bias correction:

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  u = m / (sqrt(v) + eps) + weight_decay w
        w = w - lr r u,  r = min(|w|, 10) / |u|, and 1 where either norm is 0

    All of it on the device, over lists of tensors: nothing waits for the host, and a graph can hold it. Like PyTorch's
    fused optimisers it reads an attribute `found_inf` where one is set, fp32 0-dim on the device: 1 leaves weights and
    state as they are, whatever the gradients hold.
    """

    _MAX_NORM = 10.0
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure`, if given, evaluates the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        first = weights[0]
        found_inf = getattr(self, "found_inf", None)
        skip = None if found_inf is None else found_inf.to(first.device).bool()
        keep = torch.ones((), device=first.device) if skip is None else 1.0 - skip.float()
        gradients = [w.grad for w in weights if w.grad is not None]
        if skip is not None:  # 0 times NaN is NaN: what is to be ignored must go first
            gradients = [g.masked_fill(skip, 0.0) for g in gradients]
        means, squares = zip(*map(self._moments, weights), strict=True)
        beta1, beta2 = group["betas"]

        share = (1.0 - beta1) * keep
        torch._foreach_mul_(means, 1.0 - share)
        torch._foreach_add_(means, torch._foreach_mul(gradients, share))
        share = (1.0 - beta2) * keep
        torch._foreach_mul_(squares, 1.0 - share)
        terms = torch._foreach_mul(gradients, gradients)
        torch._foreach_mul_(terms, share)
        torch._foreach_add_(squares, terms)

        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        ratio = self._trust(weights, updates) * (-group["lr"] * keep)
        torch._foreach_mul_(updates, list(ratio.unbind()))
        torch._foreach_add_(weights, updates)

    def _trust(self, weights: list[Tensor], updates: Sequence[Tensor]) -> Tensor:
        """The ratio r of every tensor, `(tensors,)`."""
        ours = torch.stack(torch._foreach_norm(weights)).clamp(max=self._MAX_NORM)
        theirs = torch.stack(torch._foreach_norm(list(updates)))
        return torch.where((ours > 0) & (theirs > 0), ours / theirs, 1.0)

    def _moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state[weight]
        if not state:
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state["exp_avg"], state["exp_avg_sq"]
