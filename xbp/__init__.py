"""xbp trains neural networks on whatever array library the data already lives in."""

import importlib as _importlib
import typing as _typing

from . import callbacks, initializers, kernels, layers, losses, metrics, optimizers, schedules
from .backend import Backend, BackendInfo, available_backends, get_backend, register_backend
from .errors import (
    BackendUnavailable,
    CacheEmpty,
    CheckpointError,
    DataError,
    DTypeError,
    GradientError,
    LabelError,
    NameUnknown,
    NonFiniteLoss,
    ShapeError,
    UnknownBackend,
    XBPError,
)
from .functions import log_softmax, relu, sigmoid, softmax
from .graph import Graph
from .layers import (
    ELU,
    GELU,
    Add,
    Affine,
    BatchNorm,
    Dropout,
    Identity,
    Layer,
    LayerNorm,
    LeakyReLU,
    Mul,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from .losses import (
    GaussianNLL,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    PoissonNLL,
    Quantile,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)
from .network import Network
from .optimizers import SGD, AdaGrad, Adam, AdamW, Optimizer, RMSProp
from .show import show_params
from .training import Trainer

if _typing.TYPE_CHECKING:
    from .testing import check_gradients, numerical_gradient

__version__ = "0.1.0"

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Add",
    "Affine",
    "Backend",
    "BackendInfo",
    "BackendUnavailable",
    "BatchNorm",
    "CacheEmpty",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "Dropout",
    "GaussianNLL",
    "GradientError",
    "Graph",
    "Huber",
    "Identity",
    "LabelError",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Mul",
    "NameUnknown",
    "Network",
    "NonFiniteLoss",
    "Optimizer",
    "PoissonNLL",
    "Quantile",
    "RMSProp",
    "ReLU",
    "ShapeError",
    "SiLU",
    "Sigmoid",
    "SigmoidCrossEntropy",
    "Softmax",
    "SoftmaxCrossEntropy",
    "Softplus",
    "Tanh",
    "Trainer",
    "UnknownBackend",
    "XBPError",
    "__version__",
    "available_backends",
    "callbacks",
    "check_gradients",
    "get_backend",
    "initializers",
    "kernels",
    "layers",
    "log_softmax",
    "losses",
    "metrics",
    "numerical_gradient",
    "optimizers",
    "register_backend",
    "relu",
    "schedules",
    "show_params",
    "sigmoid",
    "softmax",
]


def __getattr__(name: str) -> object:
    """The gradient checks, loaded when they are first used: no training needs them, and `import xbp` is to be quick."""
    if name in ("check_gradients", "numerical_gradient"):
        found: object = getattr(_importlib.import_module(".testing", __name__), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
