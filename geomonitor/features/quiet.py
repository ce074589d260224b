"""What a training framework logs from inside ``forward`` is left out while the probe set runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

_LOGGING_CLASS = "LightningModule"
_LOGGING_METHODS = ("log", "log_dict", "print")


@contextmanager
def logging_off(model: nn.Module) -> Iterator[None]:
    """Let ``log``, ``log_dict``, ``print`` and the loggers of Lightning modules do nothing inside the block.

    Lightning keeps one value for each name and batch, so a value logged in the probe pass would replace that of the
    training step.

    Args:
        model: its modules are recognised by the name of a base class; no framework is imported.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if all(kind.__name__ != _LOGGING_CLASS for kind in type(module).__mro__):
                continue
            for name in _LOGGING_METHODS:
                stack.callback(_put_back, vars(module), name, vars(module).get(name))
                vars(module)[name] = _nothing
            trainer: Any = vars(module).get("_trainer")
            if getattr(trainer, "loggers", None):
                stack.callback(setattr, trainer, "loggers", trainer.loggers)
                trainer.loggers = [_Silent()]
        yield


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _put_back(attributes: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        attributes.pop(name, None)
    else:
        attributes[name] = before


class _Silent:
    """A logger that takes any call, on itself and on what it seems to hold."""

    def __getattr__(self, name: str) -> _Silent:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Silent:
        return self
