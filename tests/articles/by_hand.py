"""What the articles compute by hand, in plain NumPy, as references that xbp is compared with.

Written anew from the articles' formulas, with their conventions, and mended where the printed code does not run.
Article 0 keeps column batches inside and divides by the batch in every layer; article 1 broadcasts; article 3 keeps its
state on the layers. `autograd` asks PyTorch for the same gradients, and refuses to answer with one that was never made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

# Article 0: functions, and a network of three dictionaries.


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def sigmoid_backward(dz, x):
    """From the pre-activation x."""
    return dz * sigmoid(x) * (1.0 - sigmoid(x))


def relu(x):
    return np.where(x <= 0, 0.0, x)


def relu_backward(dz, x):
    return np.where(x <= 0, 0.0, dz)


def softmax(x):
    """As the articles have it, without the shift that keeps exp in range."""
    e = np.exp(x)
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy_loss(pred, target):
    """(mean of the losses, gradient of their sum): article 0 takes the mean of the gradient later, layer by layer."""
    one_hot = np.eye(pred.shape[1])[target]
    p = softmax(pred)
    return -np.sum(one_hot * np.log(p)) / len(pred), p - one_hot


ACTIVATIONS = {"relu": (relu, relu_backward), "sigmoid": (sigmoid, sigmoid_backward)}


class Network:
    """Article 0's network. Layers are dicts of input_dim, output_dim, activation_func; w is (out, in), b (out, 1)."""

    def __init__(self, layers, learning_rate, rng):
        self.layers, self.lr = layers, learning_rate
        self.params, self.grads, self.cache = {}, {}, {}
        for i, layer in enumerate(layers, 1):
            shape = layer["output_dim"], layer["input_dim"]
            self.params[f"w{i}"] = rng.normal(0.0, layer["output_dim"] ** -0.5, shape)
            self.params[f"b{i}"] = rng.normal(size=(layer["output_dim"], 1)) * 0.1

    def forward(self, x):
        a = x.T
        for i, layer in enumerate(self.layers, 1):
            z = self.params[f"w{i}"] @ a + self.params[f"b{i}"]
            self.cache[f"input{i}"], self.cache[f"output{i}"] = a, z
            a = ACTIVATIONS[layer["activation_func"]][0](z)
        return a.T

    def backward(self, dy):
        """From the summed loss's gradient; stores means over the batch and returns the input's gradient, summed."""
        g, n = dy.T, len(dy)
        for i, layer in reversed(list(enumerate(self.layers, 1))):
            g = ACTIVATIONS[layer["activation_func"]][1](g, self.cache[f"output{i}"])
            self.grads[f"weight_grad{i}"] = g @ self.cache[f"input{i}"].T / n
            self.grads[f"bias_grad{i}"] = g.sum(axis=1, keepdims=True) / n
            g = self.params[f"w{i}"].T @ g
        return g.T

    def update(self):
        for i in range(1, len(self.layers) + 1):
            self.params[f"w{i}"] = self.params[f"w{i}"] - self.lr * self.grads[f"weight_grad{i}"]
            self.params[f"b{i}"] = self.params[f"b{i}"] - self.lr * self.grads[f"bias_grad{i}"]

    def train(self, data, target, batch_size):
        """One epoch; returns the loss as the article reports it, wrong where the last batch is smaller."""
        epoch_loss = 0.0
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            loss, grad = cross_entropy_loss(self.forward(data[rows]), target[rows])
            self.backward(grad)
            self.update()
            epoch_loss += loss
        return epoch_loss * batch_size / len(data)

    def query(self, data):
        return np.argmax(self.forward(data), axis=1)


def as_xbp(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Article 0's parameters or gradients by xbp's names and shapes: w1 (out, in) is "0.W" (in, out), b2 is "2.b"."""
    found = {}
    for name, a in values.items():
        at = 2 * (int(name[-1]) - 1)
        found[f"{at}.W" if name.startswith("w") else f"{at}.b"] = a.T if name.startswith("w") else a[:, 0]
    return found


# Article 1: gradients by broadcasting. The article hangs them on the tensors; here they are returned.


def back_lin(x, w, b, dy):
    """(dx, dw, db) of y = x w + b, through products of shape (N, D, M)."""
    return (dy[:, None, :] * w).sum(-1), (x[:, :, None] * dy[:, None, :]).sum(0), dy.sum(0)


def back_relu(x, dy):
    return (x > 0) * dy


def mse(pred, target):
    return np.mean((pred.squeeze(-1) - target) ** 2)


def back_mse(pred, target):
    return (2.0 * (pred.squeeze(-1) - target) / len(pred))[:, None]


# Article 3: layers that keep what their backward needs.


class AddLayer:
    def forward(self, x, y):
        return x + y

    def backward(self, dout):
        return dout * 1, dout * 1


class MulLayer:
    def forward(self, x, y):
        self.x, self.y = x, y
        return x * y

    def backward(self, dout):
        return dout * self.y, dout * self.x


class Relu:
    def forward(self, x):
        self.mask = x <= 0
        return np.where(self.mask, 0.0, x)

    def backward(self, dout):
        dout[self.mask] = 0  # into the caller's array, as in the article
        return dout


class Sigmoid:
    def forward(self, x):
        self.out = sigmoid(x)
        return self.out

    def backward(self, dout):
        return dout * (1.0 - self.out) * self.out


class Affine:
    def __init__(self, W, b):
        self.W, self.b = W, b

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout):
        self.dW, self.db = self.x.T @ dout, dout.sum(axis=0)
        return dout @ self.W.T


class SoftmaxWithLoss:
    """For one-hot targets. `backward` ignores the gradient that it is given."""

    def forward(self, x, t):
        self.y, self.t = softmax(x), t
        return -np.sum(t * np.log(self.y)) / len(t)

    def backward(self, dout=1):
        return (self.y - self.t) / len(self.t)


# The oracle, and how it is compared.

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  # of the largest entry


def autograd(f: Callable[..., Any], arrays: Mapping[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    """f's value and its gradient by each of the arrays, in their dtype, by PyTorch's autograd."""
    torch = pytest.importorskip("torch", reason="PyTorch's autograd, the reference of this test, is not installed")
    leaves = {name: torch.tensor(a).requires_grad_() for name, a in arrays.items()}
    value = f(torch, *leaves.values())
    value.backward()
    return float(value.detach()), {name: leaf_gradient(name, leaf) for name, leaf in leaves.items()}


def leaf_gradient(name: str, tensor: Any) -> np.ndarray:
    """The gradient that PyTorch left on a tensor. It leaves none on a clone, and what is None is easily overlooked."""
    if not tensor.is_leaf or tensor.grad is None:
        raise AssertionError(f"PyTorch made no gradient for {name!r}: it is {'a' if tensor.is_leaf else 'no'} leaf.")
    gradient: np.ndarray = tensor.grad.numpy().copy()
    return gradient


def relative_error(actual: np.ndarray, desired: np.ndarray) -> float:
    """The largest absolute difference over the largest absolute entry: blind neither to sign nor to scale."""
    assert actual.shape == desired.shape, f"{actual.shape} against {desired.shape}"
    difference = float(np.max(np.abs(np.asarray(actual, np.float64) - desired), initial=0.0))
    scale = float(np.max(np.abs(desired), initial=0.0))
    return difference / scale if scale else difference


def assert_same(actual: Mapping[str, np.ndarray], desired: Mapping[str, np.ndarray], tolerance: float) -> None:
    """Every array by name: the same names, shapes and values, relative to the largest entry of each."""
    assert set(actual) == set(desired)
    errors = {name: relative_error(np.asarray(actual[name]), np.asarray(desired[name])) for name in desired}
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"beyond {tolerance:g}: {wrong}"
