"""Modules that remember what they were built from, so that a checkpoint folder can build them again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
Self_ = TypeVar("Self_")


def keeps_arguments(init: Callable[Concatenate[Self_, P], None]) -> Callable[Concatenate[Self_, P], None]:
    """Decorate `__init__`: the instance's `config` holds every argument by name, defaults included."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Self_, *args: P.args, **kwargs: P.kwargs) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        init(self, *args, **kwargs)
        self.config = dict(list(bound.arguments.items())[1:])  # type: ignore[attr-defined]  # any module

    return wrapped
