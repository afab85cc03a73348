"""The optimizer of parameters that are one vector."""

import torch
from torch.optim.adamw import adamw


class VectorAdamW(torch.optim.AdamW):
    """AdamW of a single parameter, with little around the fused kernel.

    :meth:`step` of torch's optimizers looks at hooks, profilers, groups, devices and
    precisions at every call, which takes longer than to update a small network.
    """

    @torch.no_grad()
    def update(self):
        """Do what :meth:`step` does."""
        (group,) = self.param_groups
        (vector,) = group["params"]
        state = self.state[vector]
        if not state:
            state["step"] = vector.new_zeros(())
            state["exp_avg"] = torch.zeros_like(vector)
            state["exp_avg_sq"] = torch.zeros_like(vector)
        beta1, beta2 = group["betas"]
        adamw(
            [vector],
            [vector.grad],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
