"""Layers: frozen descriptions of what a network consists of. The maths is in `xbp.kernels`, the arrays in the model."""

from .activations import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from .affine import Affine
from .arithmetic import Add, Mul
from .base import Layer, Mode, Parameter
from .dropout import Dropout
from .normalization import BatchNorm, LayerNorm

__all__ = [
    "ELU",
    "GELU",
    "LAYERS",
    "Add",
    "Affine",
    "BatchNorm",
    "Dropout",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Mode",
    "Mul",
    "Parameter",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]

LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for layer in (
        Add, Affine, BatchNorm, Dropout, ELU, GELU, Identity, LayerNorm, LeakyReLU, Mul, ReLU, SiLU, Sigmoid, Softmax,
        Softplus, Tanh,
    )
}  # fmt: skip
