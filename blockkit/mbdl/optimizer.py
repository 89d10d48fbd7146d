"""The optimizer of training: Muon for the kernels of convolutions, Adam for everything else."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class KernelOptimizer:
    r"""Step along the orthogonalized momentum for kernels, and by Adam for biases and step sizes.

    A kernel is a matrix, from ``in * z * y * x`` inputs to ``out`` channels. Its momentum has a few large singular
    values, and Adam follows those; Muon sets all of them to about 1, so that every combination of channels learns. The
    step of a kernel has the root mean square of Adam's, so one learning rate serves both.

    Parameters
    ----------
    parameters
        To be trained, on one device; those with two axes or more, and real, are kernels.
    learning_rate
        Of both, times ``schedule``.
    schedule
        From the number of steps done, 0 at first, to a factor of ``learning_rate``.

    References
    ----------
    .. [1] Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
       https://kellerjordan.github.io/posts/muon/.
    .. [2] Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, schedule: Callable[[int], float]
    ) -> None:
        self.trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.kernels = [parameter for parameter in self.trained if self.is_kernel(parameter)]
        others = [parameter for parameter in self.trained if not self.is_kernel(parameter)]
        # Muon takes matrices alone: these are the kernels' other face, and share their memory where it is contiguous
        self.matrices = [nn.Parameter(_as_matrix(kernel)) for kernel in self.kernels]
        self.learning_rate, self.schedule, self.n_steps = learning_rate, schedule, 0
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if self.matrices:
            self.parts["muon"] = torch.optim.Muon(self.matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        if others:
            self.parts["adam"] = torch.optim.Adam(others)

    @staticmethod
    def is_kernel(parameter: Tensor) -> bool:
        """Tell whether Muon trains it: two axes or more, and real."""
        return parameter.ndim > 1 and not parameter.is_complex()

    def step(self) -> None:
        """Take a step along the gradients that the parameters hold; if it fails, all is as it was before."""
        values = [parameter.detach().clone() for parameter in self.trained]
        state = {name: value.clone() for name, value in self.state().items()}
        try:
            self._step()
        except BaseException:
            for parameter, value in zip(self.trained, values, strict=True):
                parameter.data.copy_(value)
            self.load(state, self.n_steps)
            raise
        self.n_steps += 1

    def _step(self) -> None:
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.data = _as_matrix(kernel)
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad)
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = self.learning_rate * self.schedule(self.n_steps)
            part.step()
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None
            if matrix.untyped_storage()._cdata != kernel.untyped_storage()._cdata:
                kernel.data.copy_(matrix.detach().view(kernel.shape))

    def state(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, but the number of steps, by name."""
        return {
            f"{name}.{i}.{key}": value
            for name, part in self.parts.items()
            for i, moments in part.state_dict()["state"].items()
            for key, value in moments.items()
        }

    def load(self, state: dict[str, Tensor], n_steps: int) -> None:
        """Go on from a :meth:`state` after ``n_steps`` steps."""
        self.n_steps = n_steps
        for name, part in self.parts.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in state.items():
                if key.startswith(f"{name}."):
                    _, i, moment = key.split(".", 2)
                    moments.setdefault(int(i), {})[moment] = value
            part.load_state_dict({"state": moments, "param_groups": part.state_dict()["param_groups"]})


def _as_matrix(kernel: Tensor) -> Tensor:
    return kernel.detach().reshape(len(kernel), -1)
