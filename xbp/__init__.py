"""xbp trains neural networks on whatever array library the data already lives in."""

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
from .training import Trainer
