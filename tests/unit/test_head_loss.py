from __future__ import annotations

import pytest
import torch

from not_fed.organ.head_loss import CHUNK_TOKENS, token_losses


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("tokens", [1, CHUNK_TOKENS, CHUNK_TOKENS + 3])
def test_loss_and_gradient_equal_plain_cross_entropy(tokens: int, softcap: float | None) -> None:
    source = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 16, generator=source).mul(3).requires_grad_()
    weight = torch.randn(50, 16, generator=source)
    targets = torch.randint(0, 50, (tokens,), generator=source)
    scale = torch.rand(tokens, generator=source)
    losses = token_losses(hidden, weight, targets, softcap=softcap)
    (gradient,) = torch.autograd.grad((losses * scale).sum(), hidden)
    logits = hidden @ weight.T
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (expected,) = torch.autograd.grad((plain * scale).sum(), hidden)
    assert torch.allclose(losses, plain, atol=1e-4)
    assert torch.allclose(gradient, expected, atol=1e-4)
