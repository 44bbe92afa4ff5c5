"""Runs public functions in torch's own default modes and precision, whatever the caller's are.

Callers work inside `torch.autocast`, `torch.inference_mode` or `torch.no_grad`, or change torch's
default dtype or device. Results and checks must not depend on that: under autocast a correct model
fails a comparison in single precision, and under inference mode nothing can be differentiated.
A forward pass of a model (`vit(images)`) is not among these functions: it heeds the caller's modes.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar, no_type_check

import torch
from torch import Tensor, nn

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _SingleByDefault:
    """float32 as the default dtype, which is one for all threads: the last to leave restores it."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.set_default_dtype(self._before)


_DEFAULT_DTYPE = _SingleByDefault()

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Value = TypeVar("Value")


@contextmanager
def default_modes(*, gradients: bool = True) -> Iterator[None]:
    """No autocast, no inference mode, float32 and the CPU as defaults; then the caller's again.

    Args:
        gradients: whether gradients are recorded.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.set_grad_enabled(gradients))
        for device in AUTOCAST_DEVICES:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        modes.enter_context(_DEFAULT_DTYPE)
        yield


def in_default_modes(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function run in torch's default modes, on ordinary models and tensors."""

    @wraps(function)
    def run(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        work: Callable[..., Result] = function
        with default_modes():
            given = [ordinary(value) for value in args]
            return work(*given, **{name: ordinary(value) for name, value in options.items()})

    return run


def without_gradients(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`in_default_modes` for a function that records no gradients."""

    @wraps(function)
    def run(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with torch.no_grad():
            return function(*args, **options)

    return in_default_modes(run)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into eval mode, then every one of their modules back into its own."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@no_type_check  # it gives back what it was given, or a copy of that
def ordinary(value: Value) -> Value:
    """A value without inference tensors, which can't be differentiated: itself, or else a copy.

    Looked at are tensors, modules, and dataclasses of tensors, such as pairs.
    """
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, nn.Module):
        return copy.deepcopy(value) if has_inference_tensors(value) else value
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name, None) for f in fields(value)}
        made = {name: each for name, each in named.items() if isinstance(each, Tensor)}
        made = {name: each.clone() for name, each in made.items() if each.is_inference()}
        if made:
            value = copy.copy(value)
        for name, each in made.items():
            object.__setattr__(value, name, each)
    return value


def has_inference_tensors(module: nn.Module) -> bool:
    """Whether a parameter or buffer was made inside `torch.inference_mode`."""
    return any(t.is_inference() for each in (module.parameters, module.buffers) for t in each())


HALF = (torch.float16, torch.bfloat16)


def in_single(values: Tensor) -> Tensor:
    """The values in single precision where they are in half, else as they are.

    Half precision has 8 or 11 significant bits: a metric, a sum or a difference computed in it can
    be smaller than its own rounding error.
    """
    return values.float() if values.dtype in HALF else values
