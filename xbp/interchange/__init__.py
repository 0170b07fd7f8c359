"""Weights and networks to and from other programs: scikit-learn, PyTorch and ONNX.

    net = from_sklearn(fitted)             an MLPClassifier's or MLPRegressor's network; to_sklearn(trainer) goes back
    net = from_torch(sequential)           or from_torch(state_dict, layers); to_torch, torch_state_dict go back
    export_safetensors(net, "net.safetensors")    weights in PyTorch's names and layout, without PyTorch
    export_onnx(net, "net.onnx")           the prediction, for ONNX Runtime and others

What goes out may be a Network, a Graph, a Trainer, or a fitted estimator of `xbp.estimators`. Of an estimator its
`network_` goes out, which ends in scores; `from_sklearn(estimator)` ends in the softmax or sigmoid of `predict_proba`.
Each needs its library only when it is called, and says what to install.
"""

from __future__ import annotations

from .onnx import OPSET, check_opset, export_onnx, onnx_bytes
from .scikit import from_sklearn, to_sklearn
from .source import HasNetwork
from .torch import export_safetensors, from_torch, to_torch, torch_state_dict

__all__ = [
    "OPSET",
    "HasNetwork",
    "check_opset",
    "export_onnx",
    "export_safetensors",
    "from_sklearn",
    "from_torch",
    "onnx_bytes",
    "to_sklearn",
    "to_torch",
    "torch_state_dict",
]
