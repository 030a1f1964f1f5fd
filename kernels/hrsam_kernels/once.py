"""Refusing what an operator's backward does not do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `backward` of an autograd function that has no second derivative.

    Raises RuntimeError under `create_graph=True`. PyTorch's own `once_differentiable` lets that pass where
    the incoming gradient is a constant, and the second derivative is then silently short of a term.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            name = type(ctx).__name__.removesuffix("Backward").lstrip("_")
            raise RuntimeError(f"{name} has no second derivative: drop create_graph=True, or use backend='reference'")
        return backward(ctx, *grads)

    return wrapped
