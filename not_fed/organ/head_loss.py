"""Cross-entropy behind a frozen head, without ever holding all logits.

The head does not learn, so the gradient that flows back is known as soon as a chunk's softmax is: it is taken in the
forward pass, chunk by chunk, and the backward pass only scales it. Memory is one chunk of logits instead of
tokens by vocabulary three times over.
Source: the idea of fused linear cross-entropy, Hsu et al. 2024 (Liger Kernel, arXiv 2410.10989), for a frozen head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 256


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:  # noqa: ANN401
        wants_gradient = hidden.requires_grad
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, len(hidden), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            _chunk(
                hidden[rows], weight, targets[rows], softcap, losses[rows], None if gradient is None else gradient[rows]
            )
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].unsqueeze(1).to(gradient.dtype), None, None, None


def _chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, losses: Tensor, gradient: Tensor | None
) -> None:
    logits = hidden @ weight.T  # (chunk, vocabulary)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    slope = None if softcap is None or gradient is None else 1 - (logits / softcap).square()
    logits = logits.float()
    top = logits.amax(dim=1, keepdim=True)  # (chunk, 1)
    right = logits.gather(1, targets.unsqueeze(1))  # (chunk, 1)
    weights = logits.sub_(top).exp_()  # (chunk, vocabulary), unnormalised softmax
    total = weights.sum(dim=1, keepdim=True)  # (chunk, 1)
    losses.copy_((total.log() + top - right).squeeze(1))
    if gradient is None:
        return
    weights.div_(total)
    weights.scatter_add_(1, targets.unsqueeze(1), weights.new_full((len(targets), 1), -1.0))
    weights = weights.to(hidden.dtype) if slope is None else (weights * slope).to(hidden.dtype)
    torch.matmul(weights, weight, out=gradient)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, *, softcap: float | None = None) -> Tensor:
    """Negative log-likelihood of each target token, in nats.

    Args:
        hidden: outputs of the final norm at the positions that predict, shape (tokens, hidden).
        weight: the frozen head, shape (vocabulary, hidden); it gets no gradient.
        targets: the tokens to predict, shape (tokens,), int64.
        softcap: logits are `softcap * tanh(logits / softcap)` in the families that have it.
    Returns:
        shape (tokens,), float32; differentiable in `hidden` alone.
    Proved by: tests/unit/test_head_loss.py::test_loss_and_gradient_equal_plain_cross_entropy
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # cast the head once: left to autocast, every chunk would cast it again
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return _HeadLoss.apply(hidden, weight, targets, softcap)  # type: ignore[no-any-return, no-untyped-call]
