"""Know where in a network an operation runs: in which module, and in which call of its author."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


class Watch:
    """Follows which module runs, on a copy of the user's network, so that an operation can be named."""

    def __init__(self, network: nn.Module) -> None:
        self.stack: list[str] = []
        for path, module in network.named_modules():
            name = f"{path or 'forward'} ({type(module).__name__})"
            module.register_forward_pre_hook(self._enter(name))
            module.register_forward_hook(self._leave)

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: self.stack.append(name)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.stack.pop()


class Calls(TorchFunctionMode):
    """Remembers the outermost torch function: its name is the one that the network's author wrote."""

    name = ""
    options: dict[str, Any] = {}  # noqa: RUF012

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.name = getattr(func, "__name__", str(func))
        self.options = {key: kwargs[key] for key in ("mode", "align_corners") if key in kwargs}
        if self.name == "pad" and len(args) > 2:
            self.options["mode"] = args[2]
        return func(*args, **kwargs)
