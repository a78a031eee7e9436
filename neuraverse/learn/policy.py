"""The actor and the critic: two MLPs, a state-independent log-std, and a frozen observation normaliser.

All parameters are views of one flat tensor `theta`, their gradients views of `grad`: the optimiser, the
gradient norm and the checkpoint each handle one tensor. Forward and backward passes are written out, since
for networks this small autograd's bookkeeping costs a quarter of the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from neuraverse.errors import WeightsError

OBSERVATION_CLIP = 10.0  # normalised observations are clipped to ± this
_ALIGN = 16  # floats; every view starts on a cache line
_OPS = torch.ops.aten

# name -> (activation in place, gradient in place given the activation's own result)
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], object]]] = {
    "elu": (
        torch.nn.functional.elu_,
        lambda g, y: _OPS.elu_backward.grad_input(g, 1, 1, 1, True, y, grad_input=g),
    ),
    "tanh": (torch.tanh_, lambda g, y: _OPS.tanh_backward.grad_input(g, y, grad_input=g)),
    "relu": (torch.relu_, lambda g, y: _OPS.threshold_backward.grad_input(g, y, 0, grad_input=g)),
}
ACTIVATIONS = tuple(_ACTIVATIONS)


class Mlp:
    """Fully connected layers over views of a flat parameter tensor.

    Args:
        weights: One (out, in) view per layer.
        biases: One (out,) view per layer.
        weight_grads: Where `backward` writes the gradient of each weight.
        bias_grads: Where `backward` writes the gradient of each bias.
        activation: Name of the activation between layers; the last layer is linear.
    """

    def __init__(
        self,
        weights: list[Tensor],
        biases: list[Tensor],
        weight_grads: list[Tensor],
        bias_grads: list[Tensor],
        activation: str,
    ) -> None:
        self.weights = weights
        self.biases = biases
        self.weight_grads = weight_grads
        self.bias_grads = bias_grads
        self._activate, self._activate_backward = _ACTIVATIONS[activation]

    def workspace(self, rows: int) -> list[Tensor]:
        """Buffers for the outputs of each layer for a batch of `rows`."""
        return [w.new_empty(rows, w.shape[0]) for w in self.weights]

    def forward(self, x: Tensor, outputs: Sequence[Tensor] | None = None) -> Tensor:
        """(rows, in) -> (rows, out); each layer's output is left in `outputs` for `backward`."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if outputs is None:
                x = torch.addmm(bias, x, weight.t())
            else:
                x = torch.addmm(bias, x, weight.t(), out=outputs[i])
            if i < last:
                self._activate(x)
        return x

    def backward(self, x: Tensor, outputs: Sequence[Tensor], grad: Tensor, scratch: Sequence[Tensor]) -> None:
        """Write the gradients of all weights, given the gradient (rows, out) of the last output."""
        for i in range(len(self.weights) - 1, -1, -1):
            below = outputs[i - 1] if i else x
            torch.mm(grad.t(), below, out=self.weight_grads[i])
            torch.sum(grad, 0, out=self.bias_grads[i])
            if i:
                grad = torch.mm(grad, self.weights[i], out=scratch[i - 1])
                self._activate_backward(grad, below)


class ActorCritic:
    """A Gaussian policy and a value function over flat observations.

    The deterministic action is ``clip(mean, -1, 1)``. The observation normaliser (mean, std; clipped to
    ± `OBSERVATION_CLIP`) is part of the policy and never changes once `freeze_normaliser` was called.

    Args:
        obs_dim: Elements of one flat observation.
        act_dim: Elements of one flat action.
        hidden: Widths of the hidden layers, of actor and critic alike.
        activation: ``elu``, ``tanh`` or ``relu``.
        init_std: Initial standard deviation of the exploration noise, in action units (range ± 1).
        device: Where the parameters live.
        generator: Source of the initial weights (on the CPU); None draws from torch's default.

    Attributes:
        theta: (P,) all parameters: actor, then log-std, then critic.
        grad: (P,) their gradients, in the same order.
        split: Index in `theta` of the critic's first parameter.
        normaliser_mean: (obs_dim,).
        normaliser_std: (obs_dim,).
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "elu",
        init_std: float = 0.37,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        self.obs_dim = obs_dim
        self.act_dim = act_dim
        self.hidden = tuple(hidden)
        self.activation = activation
        self.device = torch.device(device)
        self._shapes = _layout(obs_dim, act_dim, self.hidden)
        self._offsets, size = _offsets(self._shapes)
        self.split = self._offsets["critic.0.weight"]
        self.theta = torch.zeros(size, device=self.device)
        self.grad = torch.zeros(size, device=self.device)
        self._views = self._carve(self.theta)
        self._grad_views = self._carve(self.grad)
        self.actor = self._mlp("actor")
        self.critic = self._mlp("critic")
        self.log_std = self._views["log_std"]
        self.log_std_grad = self._grad_views["log_std"]
        self.normaliser_mean = torch.zeros(obs_dim, device=self.device)
        self.normaliser_std = torch.ones(obs_dim, device=self.device)
        self._initialise(init_std, generator)

    def _carve(self, flat: Tensor) -> dict[str, Tensor]:
        return {
            name: flat[start : start + math.prod(shape)].view(shape)
            for (name, shape), start in zip(self._shapes.items(), self._offsets.values(), strict=True)
        }

    def _mlp(self, part: str) -> Mlp:
        layers = range(len(self.hidden) + 1)
        return Mlp(
            [self._views[f"{part}.{i}.weight"] for i in layers],
            [self._views[f"{part}.{i}.bias"] for i in layers],
            [self._grad_views[f"{part}.{i}.weight"] for i in layers],
            [self._grad_views[f"{part}.{i}.bias"] for i in layers],
            self.activation,
        )

    def _initialise(self, init_std: float, generator: torch.Generator | None) -> None:
        """Orthogonal weights: gain √2 inside, 0.01 before the action, 1 before the value."""
        for name, view in self._views.items():
            if name.endswith("weight"):
                part, layer, _ = name.split(".")
                last = int(layer) == len(self.hidden)
                gain = math.sqrt(2.0) if not last else 0.01 if part == "actor" else 1.0
                start = torch.empty(view.shape)
                torch.nn.init.orthogonal_(start, gain, generator=generator)
                view.copy_(start)
        self.log_std.fill_(math.log(init_std))

    def freeze_normaliser(self, observations: Tensor) -> None:
        """Set the normaliser from raw observations (rows, obs_dim); a constant element is only centred."""
        std, mean = torch.std_mean(observations.double(), 0, correction=0)
        self.normaliser_mean.copy_(mean)
        self.normaliser_std.copy_(torch.where(std < 1e-6, 1.0, std))

    def normalise(self, observations: Tensor, out: Tensor | None = None) -> Tensor:
        """Raw observations (rows, obs_dim) -> what the networks see."""
        out = torch.sub(observations, self.normaliser_mean, out=out)
        return out.div_(self.normaliser_std).clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Deterministic actions (rows, act_dim) in [-1, 1] for raw observations (rows, obs_dim)."""
        return self.actor.forward(self.normalise(observations)).clamp_(-1.0, 1.0)

    @property
    def parameters(self) -> int:
        """Number of learned numbers, critic included."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def tensors(self) -> dict[str, Tensor]:
        """Every weight and the normaliser by name, on the CPU, as they are stored in a skill."""
        own = {name: view.detach().cpu().clone() for name, view in self._views.items()}
        own["normaliser.mean"] = self.normaliser_mean.cpu().clone()
        own["normaliser.std"] = self.normaliser_std.cpu().clone()
        own["normaliser.clip"] = torch.tensor([OBSERVATION_CLIP])
        return own

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned.

        Raises:
            WeightsError: A tensor is missing, unknown, misshapen or not finite, or the clip differs.
        """
        expected = {name: tuple(view.shape) for name, view in self._views.items()}
        expected |= {
            "normaliser.mean": (self.obs_dim,),
            "normaliser.std": (self.obs_dim,),
            "normaliser.clip": (1,),
        }
        for name in sorted(expected.keys() ^ tensors.keys()):
            raise WeightsError(
                f"weights: {name} is {'missing' if name in expected else 'not part of this network'}"
            )
        for name, shape in expected.items():
            value = tensors[name]
            if tuple(value.shape) != shape:
                raise WeightsError(
                    f"weights: {name} has shape {tuple(value.shape)}, the network needs {shape}"
                )
            if not bool(torch.isfinite(value).all()):
                raise WeightsError(f"weights: {name} holds numbers that are not finite")
        if float(tensors["normaliser.clip"]) != OBSERVATION_CLIP:
            raise WeightsError(
                f"weights: normaliser.clip is {float(tensors['normaliser.clip'])}, not {OBSERVATION_CLIP}"
            )
        if bool((tensors["normaliser.std"] <= 0).any()):
            raise WeightsError("weights: normaliser.std must be positive")
        for name, view in self._views.items():
            view.copy_(tensors[name])
        self.normaliser_mean.copy_(tensors["normaliser.mean"])
        self.normaliser_std.copy_(tensors["normaliser.std"])

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], *, activation: str, device: torch.device | str = "cpu"
    ) -> ActorCritic:
        """The network that `tensors` belong to; its sizes are read off their shapes.

        Raises:
            WeightsError: They are not the weights of such a network.
        """
        if activation not in _ACTIVATIONS:
            raise WeightsError(f"the activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
        depth = sum(name.startswith("actor.") and name.endswith(".weight") for name in tensors)
        try:
            shapes = [tuple(tensors[f"actor.{i}.weight"].shape) for i in range(depth)]
            widths = [shapes[0][1], *(shape[0] for shape in shapes)]
        except (KeyError, IndexError) as error:
            raise WeightsError(
                "weights: there is no actor.0.weight, actor.1.weight, … of two axes"
            ) from error
        policy = cls(widths[0], widths[-1], hidden=widths[1:-1], activation=activation, device=device)
        policy.load(tensors)
        return policy

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process border as plain arrays; the copy lives on the CPU."""
        return _rebuild, ({name: value.numpy() for name, value in self.tensors().items()}, self.activation)

    def clone(self) -> ActorCritic:
        """An independent copy on the same device."""
        return ActorCritic.from_tensors(self.tensors(), activation=self.activation, device=self.device)


def _rebuild(arrays: Mapping[str, np.ndarray], activation: str) -> ActorCritic:
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    return ActorCritic.from_tensors(tensors, activation=activation)


def _layout(obs_dim: int, act_dim: int, hidden: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part, out in (("actor", act_dim), ("critic", 1)):
        widths = (obs_dim, *hidden, out)
        for i in range(len(widths) - 1):
            shapes[f"{part}.{i}.weight"] = (widths[i + 1], widths[i])
            shapes[f"{part}.{i}.bias"] = (widths[i + 1],)
        if part == "actor":
            shapes["log_std"] = (act_dim,)
    return shapes


def _offsets(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], int]:
    offsets, at = {}, 0
    for name, shape in shapes.items():
        offsets[name] = at
        at += -(-math.prod(shape) // _ALIGN) * _ALIGN
    return offsets, at
