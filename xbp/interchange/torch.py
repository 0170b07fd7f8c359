"""Networks as PyTorch's `nn.Sequential`, its state dicts and safetensors files of them, and back.

PyTorch keeps the matrix of a linear map as (out, in), the transpose of W; the names differ, the numbers do not. Layers
stand at the same positions on both sides, so "0.W" of a network is "0.weight" there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import storage
from ..backend import Backend
from ..errors import ExchangeError, NameUnknown, ShapeError, unknown_name
from ..layers import (
    ELU,
    GELU,
    Affine,
    BatchNorm,
    Dropout,
    Identity,
    Layer,
    LayerNorm,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from ..libraries import need
from ..model import Model
from ..network import Network
from ..training import Trainer
from .source import HasNetwork, model_of

__all__ = ["export_safetensors", "from_torch", "to_torch", "torch_state_dict"]

COUNT = "num_batches_tracked"  # of PyTorch's batch norms, which read it only where momentum is None
NAMES: dict[type[Layer], dict[str, str]] = {
    Affine: {"W": "weight", "b": "bias"},
    LayerNorm: {"gamma": "weight", "beta": "bias"},
    BatchNorm: {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"},
}
LAYOUTS = ("torch", "xbp")


def torch_state_dict(model: Model | Trainer | HasNetwork) -> dict[str, Any]:
    """The weights as tensors on the host, for `load_state_dict` of an `nn.Sequential` of the same layers.

    model    a Network or Graph, the Trainer of one, or a fitted estimator of `xbp.estimators`

    Of a Graph, the names begin with those of its nodes. Raises `ExchangeError` for layers that PyTorch lacks.
    """
    model = model_of(model, "torch_state_dict")
    torch = need("torch", "torch_state_dict", "torch")
    return {name: torch.from_numpy(a.copy()) for name, a in _arrays(model).items()}


def to_torch(network: Network | Trainer | HasNetwork) -> Any:
    """An `nn.Sequential` with the layers and weights of a network, on the host, in evaluation mode.

    network    also the Trainer of one, or a fitted estimator of `xbp.estimators`, whose module gives scores
    """
    network = model_of(network, "to_torch")  # type: ignore[assignment]  # what is no Network is refused here
    if not isinstance(network, Network):
        raise ExchangeError(f"nn.Sequential is a chain of layers; a {type(network).__name__} is none.")
    nn = need("torch.nn", "to_torch", "torch")
    weights = torch_state_dict(network)
    module = nn.Sequential(*(_module(nn, node.name, node.layer) for node in network.plan.nodes))
    if network.dtype == "float64":
        module.double()
    module.load_state_dict(weights)
    return module.eval()


def from_torch(
    source: Any,
    layers: Iterable[Layer] | None = None,
    *,
    backend: str | Backend = "auto",
    dtype: str | None = None,
    seed: int = 0,
) -> Network:
    """The network of an `nn.Sequential`, or of a state dict and the layers that it belongs to.

    source    an `nn.Sequential` (others inside it are unrolled), or the mapping that `state_dict()` gives, of tensors
              or arrays; its modules may have any names, their order counts
    layers    with a state dict, which says nothing of activations: the layers in order
    dtype     None is float64 where the weights are, else float32

    A LayerNorm or BatchNorm1d without weights gets ones and zeros, which then learn. Raises `ExchangeError` for modules
    without a counterpart, `ShapeError` for weights that do not fit.
    """
    if isinstance(source, Mapping):
        if layers is None:
            raise ExchangeError(
                "A state dict does not say which activations lie between its weights: give layers=[...]."
            )
        chain, groups = list(layers), _grouped(source)
    else:
        if layers is not None:
            raise ExchangeError("An nn.Sequential says itself what its layers are; layers= belongs to a state dict.")
        modules = list(_unrolled(source, type(source).__name__))
        chain = [_layer(where, module) for where, module in modules]
        pairs = zip(chain, modules, strict=True)
        groups = [(where, dict(m.state_dict())) for layer, (where, m) in pairs if layer.parameters()]
    arrays = [(where, {n: _host(a) for n, a in group.items()}) for where, group in groups]
    if dtype is None:
        dtype = "float64" if any(a.dtype == np.float64 for _, group in arrays for a in group.values()) else "float32"
    network = Network(chain, backend=backend, dtype=dtype, seed=seed)
    _load(network, arrays)
    return network


def export_safetensors(model: Model | Trainer | HasNetwork, path: str | Path, *, layout: str = "torch") -> None:
    """Write the weights to a safetensors file, whole or not at all.

    model     a Network or Graph, the Trainer of one, or a fitted estimator of `xbp.estimators`
    layout    "torch": names and shapes of `torch_state_dict`, for `safetensors.torch.load_file`; "xbp": those of
              `model.params`, which `model.save` writes as well

    Needs no PyTorch. Raises `CheckpointError` where the file cannot be written.
    """
    model = model_of(model, "export_safetensors")
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if layout == "xbp":
        model.save(path)
    else:
        storage.write(path, _arrays(model), {**model.header(), "kind": "PyTorch state dict"})


# --- to PyTorch -------------------------------------------------------------------------------------------------------


def _arrays(model: Model) -> dict[str, np.ndarray]:
    """All weights by PyTorch's names, on the host."""
    held = {**model.params, **model.buffers}
    arrays: dict[str, np.ndarray] = {}
    for node in model.plan.nodes:
        names = NAMES.get(type(node.layer), {})
        for local, full in (*node.params, *node.buffers):
            if local not in names:
                raise ExchangeError(
                    f"Layer {node.name!r}, {node.layer}, has no counterpart in torch.nn for its {local!r}."
                )
            a = model.backend.to_host(held[full])
            arrays[f"{node.name}.{names[local]}"] = np.ascontiguousarray(a.T) if local == "W" else a
        if isinstance(node.layer, BatchNorm):
            arrays[f"{node.name}.{COUNT}"] = np.zeros((), dtype=np.int64)
    return arrays


def _module(nn: Any, name: str, layer: Layer) -> Any:
    """The module of a layer, with its own initial weights."""
    makers: dict[type[Layer], Callable[[Any], Any]] = {
        Affine: lambda a: nn.Linear(a.in_features, a.out_features, bias=a.bias),
        LayerNorm: lambda a: nn.LayerNorm(a.size, eps=a.eps),
        BatchNorm: lambda a: nn.BatchNorm1d(a.size, eps=a.eps, momentum=a.momentum),
        Dropout: lambda a: nn.Dropout(a.p),
        ReLU: lambda a: nn.ReLU(),
        LeakyReLU: lambda a: nn.LeakyReLU(a.negative_slope),
        ELU: lambda a: nn.ELU(a.alpha),
        GELU: lambda a: nn.GELU(approximate=a.approximate),
        SiLU: lambda a: nn.SiLU(),
        Softplus: lambda a: nn.Softplus(a.beta),
        Sigmoid: lambda a: nn.Sigmoid(),
        Tanh: lambda a: nn.Tanh(),
        Softmax: lambda a: nn.Softmax(dim=-1),
        Identity: lambda a: nn.Identity(),
    }
    if type(layer) not in makers:
        raise ExchangeError(f"Layer {name!r} is {layer}, which has no counterpart in torch.nn.")
    return makers[type(layer)](layer)


# --- from PyTorch -----------------------------------------------------------------------------------------------------


def _unrolled(module: Any, where: str) -> Iterable[tuple[str, Any]]:
    """The modules of a Sequential in order, with their names; those of Sequentials inside it too."""
    if type(module).__name__ != "Sequential":
        raise ExchangeError(
            f"from_torch takes an nn.Sequential or a state dict; it got a {type(module).__module__}.{where}. Of a "
            "module of your own, give its state_dict() and layers=[...]."
        )
    for name, child in module.named_children():
        if type(child).__name__ == "Sequential":
            yield from ((f"{name}.{inner}", m) for inner, m in _unrolled(child, name))
        else:
            yield name, child


def _layer(where: str, module: Any) -> Layer:
    makers: dict[str, Callable[[Any], Layer]] = {
        "Linear": lambda m: Affine(m.in_features, m.out_features, bias=m.bias is not None),
        "LayerNorm": lambda m: LayerNorm(_only(m.normalized_shape), eps=m.eps),
        "BatchNorm1d": lambda m: BatchNorm(m.num_features, eps=m.eps, momentum=m.momentum),
        "Dropout": lambda m: Dropout(m.p),
        "ReLU": lambda m: ReLU(),
        "LeakyReLU": lambda m: LeakyReLU(m.negative_slope),
        "ELU": lambda m: ELU(m.alpha),
        "GELU": lambda m: GELU(m.approximate),
        "SiLU": lambda m: SiLU(),
        "Softplus": lambda m: Softplus(m.beta),
        "Sigmoid": lambda m: Sigmoid(),
        "Tanh": lambda m: Tanh(),
        "Softmax": lambda m: Softmax(),
        "Identity": lambda m: Identity(),
    }
    kind = type(module).__name__
    if kind not in makers:
        raise ExchangeError(f"Module {where!r}, {module}, has no counterpart in xbp. There are: {', '.join(makers)}.")
    if kind == "Softmax" and module.dim not in (1, -1):
        raise ExchangeError(f"Module {where!r} is {module}; a softmax of rows has dim=1 or dim=-1.")
    if kind == "BatchNorm1d" and (module.running_mean is None or module.momentum is None):
        raise ExchangeError(
            f"Module {where!r} is {module}; BatchNorm of xbp keeps running statistics that move by a fixed momentum."
        )
    return makers[kind](module)


def _only(shape: tuple[int, ...]) -> int:
    if len(shape) != 1:
        raise ExchangeError(f"LayerNorm over axes of shape {tuple(shape)}; in xbp it is over the single axis of a row.")
    return int(shape[0])


def _grouped(state: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The tensors of a state dict by module, in order: of their numbers, else as they stand in the mapping."""
    groups: dict[str, dict[str, Any]] = {}
    for full, a in state.items():
        module, _, name = full.rpartition(".")
        groups.setdefault(module, {})[name] = a
    if all(re.fullmatch(r"\d+(\.\d+)*", module) for module in groups):  # a file has sorted them as text: 10 before 2
        return sorted(groups.items(), key=lambda group: [int(n) for n in group[0].split(".")])
    return list(groups.items())


def _host(tensor: Any) -> np.ndarray:
    """A tensor or an array as NumPy's; numbers of half width become float32."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
        return np.asarray(tensor.numpy())
    return np.asarray(tensor)


def _load(network: Network, groups: list[tuple[str, dict[str, np.ndarray]]]) -> None:
    """Put the weights in, module by module in order of the layers that have some."""
    takers = [node for node in network.plan.nodes if node.params]
    full = [node for node in takers if not isinstance(node.layer, LayerNorm | BatchNorm)]
    nodes = takers if len(groups) == len(takers) else full if len(groups) == len(full) else None
    if nodes is None:
        raise ShapeError(
            f"The weights are of {len(groups)} modules ({', '.join(where for where, _ in groups)}); {len(takers)} "
            f"layers have some ({', '.join(f'{n.name}: {n.layer}' for n in takers)})."
        )
    for node, (where, group) in zip(nodes, groups, strict=True):
        for section, names in ((network.params, node.params), (network.buffers, node.buffers)):
            for local, name in names:
                theirs = NAMES.get(type(node.layer), {}).get(local, local)
                if theirs not in group:
                    if isinstance(node.layer, LayerNorm | BatchNorm):
                        continue  # made without weights of its own
                    raise ExchangeError(
                        f"Module {where!r} has no {theirs!r}, which layer {node.name!r}, {node.layer}, needs."
                    )
                a = group[theirs]
                try:
                    section[name] = np.asarray(a.T if local == "W" else a, dtype=network.dtype)
                except (ShapeError, NameUnknown) as error:
                    raise ShapeError(
                        f"Module {where!r} does not fit layer {node.name!r}, {node.layer}: {error}"
                    ) from error
        known = {NAMES.get(type(node.layer), {}).get(local, local) for local, _ in (*node.params, *node.buffers)}
        if more := sorted(set(group) - known - {COUNT}):
            raise ExchangeError(
                f"Module {where!r} has {', '.join(more)}, for which layer {node.name!r}, {node.layer}, has no place."
            )
