"""xbp trains neural networks on whatever array library the data already lives in."""

import importlib as _importlib
import logging as _logging
import typing as _typing

from . import initializers, kernels, layers, losses, optimizers, schedules
from .backend import Backend, BackendInfo, available_backends, get_backend, register_backend
from .errors import (
    BackendUnavailable,
    CacheEmpty,
    CheckpointError,
    DataError,
    DTypeError,
    GradientError,
    LabelError,
    MemoryExceeded,
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

if _typing.TYPE_CHECKING:
    from . import callbacks, metrics
    from .show import show_params
    from .testing import check_gradients, numerical_gradient
    from .training import Trainer

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
    "MemoryExceeded",
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

_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # whether anything is shown, the program decides

_LATER = {  # loaded when they are first used, so that `import xbp` is quick
    "callbacks": "callbacks",
    "check_gradients": "testing",
    "metrics": "metrics",
    "numerical_gradient": "testing",
    "show_params": "show",
    "Trainer": "training",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _importlib.import_module(f".{_LATER[name]}", __name__)
    return module if name == _LATER[name] else getattr(module, name)
