"""What Network and Graph have in common: they own the arrays, and run the one traversal over their layers.

Four mappings hold everything: `params` and `grads` with the same keys, `cache` between forward and backward, and
`buffers` for what forward changes in training. Layers hold nothing, so this is the only place where arrays live.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from . import storage
from .backend import Backend, get_backend, on_device
from .describe import classes_in
from .errors import BackendUnavailable, CacheEmpty, CheckpointError, DTypeError, ShapeError
from .initializers import BY_NAME, Glorot, Initializer
from .inputs import taken, taken_all
from .layers import LAYERS
from .random import step_keys, weight_generator
from .traversal import Plan, backward, forward
from .typing import Array, Inputs
from .weights import ArrayMap, Weights

__all__ = ["CLASSES", "Model", "check_dtype", "check_seed"]

log = logging.getLogger(__name__)

CLASSES: dict[str, type] = {**LAYERS, **{type(i).__name__: type(i) for i in BY_NAME.values()}}
"""The classes that a model file may name."""


def check_dtype(dtype: Any) -> str:
    """The name of a dtype that networks can have."""
    try:
        name = dtype if isinstance(dtype, str | None) else np.dtype(dtype).name  # np.dtype(None) would be float64
    except TypeError:
        name = str(dtype).rpartition(".")[2]  # torch.float32, array_api_strict.float32
    if name not in ("float32", "float64"):
        raise DTypeError(f'dtype must be "float32" or "float64"; it is {dtype!r}.')
    return name


def check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or int(seed) < 0:
        raise ValueError(f"seed must be a whole number of at least 0; it is {seed!r}.")
    return int(seed)


def _backend_here(name: str, device: str | None) -> Backend:
    for where in (device, None):
        with contextlib.suppress(BackendUnavailable):
            return get_backend(name, where)
    backend = get_backend("auto")
    log.warning("The pickled model was on backend %r, which cannot run here; it is on %r now.", name, backend.name)
    return backend


class Model:
    """Base of Network and Graph."""

    kind: ClassVar[str]
    plan: Plan

    def __init__(self, plan: Plan, backend: str | Backend, dtype: str, seed: int) -> None:
        self.plan = plan
        self.backend = get_backend(backend)
        self.xp = self.backend.xp
        self.dtype = check_dtype(dtype)
        self.backend.dtype(self.dtype)  # raises where the device lacks it
        self.seed = check_seed(seed)
        self.metadata: dict[str, Any] = {}  # JSON data of the user's, saved with the model
        self.passes = 0  # training passes by `forward`, the step number that dropout masks are drawn from
        params, buffers = self._initial()
        self._weights = Weights(self.backend, params, buffers)
        self._grads: dict[str, Array] = {}
        self._cache: dict[str, Any] = {}
        self._output: Array | None = None

    # --- what the model holds -------------------------------------------------------------------------------------

    @property
    def params(self) -> ArrayMap:
        """Parameters by name. `net.params[k] = a` checks name, shape and dtype, and copies; every engine sees it."""
        return ArrayMap(self._weights, "params", "parameter")

    @property
    def buffers(self) -> ArrayMap:
        """Running statistics by name: saved with the parameters, without a gradient."""
        return ArrayMap(self._weights, "buffers", "buffer")

    @property
    def grads(self) -> Mapping[str, Array]:
        """Gradients of the last `backward`, with the keys of `params`; empty before the first."""
        return MappingProxyType(self._grads)

    @property
    def cache(self) -> Mapping[str, Any]:
        """What the layers keep between `forward` and `backward`, by layer; `backward` empties it."""
        return MappingProxyType(self._cache)

    def load_params(self, params: Mapping[str, Any]) -> None:
        """Take all parameters from host or device arrays, copied. Raises for a missing, unknown or ill-fitting one."""
        missing = [name for name in self.params if name not in params]
        if missing:
            raise ShapeError(
                f"load_params needs every parameter; missing: {', '.join(missing)}. "
                "Assign single ones with net.params[name] = value."
            )
        self.params.update_checked(params)

    # --- the two passes -------------------------------------------------------------------------------------------

    @on_device
    def forward(self, x: Any, *, train: bool = False, step: int | None = None) -> Array:
        """The scores (N, K) for inputs (N, D); fills `cache`.

        x        (N, D): an array of the backend, or host data, which is moved; cast to the model's dtype
        train    turns dropout and batch statistics on, and updates the running statistics
        step     the number that dropout masks are drawn from; None counts the training passes

        Raises `ShapeError` and `DTypeError` for input that does not fit the first layer.
        """
        x = self._rows(x)
        number = self.passes if step is None else step
        tree = self._weights.tree
        passed = forward(
            self.plan,
            tree["params"],
            tree["buffers"],
            x,
            xp=self.xp,
            train=train,
            keys=self._keys(number) if train else None,
        )
        self._cache, self._output = passed.caches, passed.y
        if train:
            self.passes = self.passes + 1 if step is None else self.passes
            if passed.buffers:
                self._weights.write("buffers", passed.buffers)
        return passed.y

    @on_device
    def _backward(self, dy: Any, wanted: frozenset[str], accumulate: bool, *, keep: bool = False) -> dict[str, Array]:
        if self._output is None:
            raise CacheEmpty(
                "backward() needs a forward() before it: the cache is empty. One forward serves one backward, "
                "because backward empties the cache as it goes."
            )
        dy = taken("dy", dy, self.backend, self.dtype)
        if tuple(dy.shape) != tuple(self._output.shape):
            raise ShapeError(
                f"dy must have the shape of the output, {tuple(self._output.shape)}; it has {tuple(dy.shape)}."
            )
        caches, self._cache, self._output = self._cache, {}, None
        grads, slopes = backward(self.plan, caches, dy, wanted=wanted, xp=self.xp, keep=keep)
        grads = {name: grads[name] for name in self.params if name in grads}
        if accumulate and self._grads:
            grads = {name: self._grads[name] + g for name, g in grads.items()}
        self._grads = grads
        return slopes

    @on_device
    def predict(self, x: Any, *, batch_size: int = 4096) -> Array:
        """The scores (N, K), in chunks of `batch_size` rows; keeps no cache, moves host data chunk by chunk.

        Raises `ShapeError`, `DTypeError`, and `DataError` for NaN or infinity in x.
        """
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1; it is {batch_size!r}.")
        chunks = [self._scores(rows) for rows in self._chunks(x, batch_size)]
        return chunks[0] if len(chunks) == 1 else self.xp.concat(chunks, axis=0)

    def _scores(self, x: Inputs) -> Array:
        if self._weights.scores is not None:
            return self._weights.scores(x)  # on the engine of the trainer that has the weights
        tree = self._weights.tree
        return forward(self.plan, tree["params"], tree["buffers"], x, xp=self.xp, keep=False).y

    def _chunks(self, x: Any, batch_size: int) -> Any:
        yield from taken_all(x, self.plan, self.backend, self.dtype, batch_size)

    def _rows(self, x: Any) -> Inputs:
        return next(iter(taken_all(x, self.plan, self.backend, self.dtype, None, check=False)))

    def _keys(self, step: int) -> dict[str, int]:
        steps = np.asarray([step])
        return {name: int(step_keys(self.seed, self.position(name), steps)[0]) for name in self.plan.random_nodes()}

    def position(self, name: str) -> int:
        """The place of a node in the order of the model, which its random numbers are named by."""
        return next(i for i, node in enumerate(self.plan.nodes) if node.name == name)

    # --- initial values -------------------------------------------------------------------------------------------

    @on_device
    def _initial(self) -> tuple[dict[str, Array], dict[str, Array]]:
        params: dict[str, Array] = {}
        buffers: dict[str, Array] = {}
        for node in self.plan.nodes:
            for local, spec in node.layer.parameters().items():
                init = spec.init or self._initializer_for(node.name)
                values = init(weight_generator(self.seed, len(params)), spec.shape)
                if np.shape(values) != spec.shape:
                    raise ShapeError(
                        f"Parameter '{node.name}.{local}' has shape {spec.shape}, but its initialiser {init!r} "
                        f"gave values of shape {np.shape(values)}."
                    )
                params[f"{node.name}.{local}"] = self.backend.asarray(values, self.dtype)
            for local, spec in node.layer.buffers().items():
                values = (spec.init or Glorot())(np.random.default_rng(0), spec.shape)
                buffers[f"{node.name}.{local}"] = self.backend.asarray(values, self.dtype)
        return params, buffers

    def _initializer_for(self, name: str) -> Initializer:
        """The initialiser that suits the first activation after the node; Glorot where none follows."""
        for node in self.plan.nodes:
            if name in node.inputs:
                if node.layer.follows is not None:
                    return BY_NAME[node.layer.follows]
                if "W" in dict(node.params):
                    break  # the next matrix: nothing bent the signal in between
                return self._initializer_for(node.name)
        return Glorot()

    # --- copies ---------------------------------------------------------------------------------------------------

    @on_device
    def __getstate__(self) -> dict[str, Any]:
        """What pickle, copy, joblib and skops keep: the bytes that `save` would write, and where the model was.

        Gradients and what lies between a forward and a backward are not part of it.
        """
        tree = self._weights.tree
        arrays = {n: self.backend.to_host(a) for n, a in {**tree["params"], **tree["buffers"]}.items()}
        own = {c.__name__: c for node in self.plan.nodes for c in classes_in(node.layer) if c not in CLASSES.values()}
        device = None if self.backend.device is None else str(self.backend.device)
        return {
            "file": storage.packed(arrays, self.header()),
            "backend": self.backend.name,
            "device": device,
            "classes": own,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """On the backend and device of before; where this machine does not have them, on what "auto" gives."""
        arrays, header = storage.unpacked(state["file"])
        backend = _backend_here(state["backend"], state["device"])
        self.__dict__.update(type(self).restore(arrays, header, "the pickle", backend, state["classes"]).__dict__)

    # --- files ----------------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _rebuild(cls, header: Mapping[str, Any], classes: Mapping[str, type], backend: str | Backend) -> Self:
        raise NotImplementedError

    def header(self) -> dict[str, Any]:
        """The JSON description from which the model is built again."""
        return {
            "kind": self.kind,
            "model": self._describe(),
            "dtype": self.dtype,
            "seed": self.seed,
            "passes": self.passes,
            "metadata": self.metadata,
        }

    @on_device
    def save(self, path: str | Path) -> None:
        """Write weights and description to one safetensors file, whole or not at all, with readable JSON beside it.

        Raises `CheckpointError` where the file cannot be written; an older file of that name then survives.
        """
        tree = self._weights.tree
        arrays = {n: self.backend.to_host(a) for n, a in {**tree["params"], **tree["buffers"]}.items()}
        storage.write(path, arrays, self.header())

    @classmethod
    def load(
        cls, path: str | Path, *, backend: str | Backend = "auto", custom: Mapping[str, type] | None = None
    ) -> Self:
        """The model in a file that `save` (or `Trainer.save`) wrote, on any backend.

        custom    your own layer classes by name; a file never makes xbp import anything

        Raises `CheckpointError` for a file that is missing, truncated, or of another kind of model.
        """
        arrays, header = storage.read(path)
        return cls.restore(arrays, header, path, backend, custom)

    @classmethod
    def restore(
        cls,
        arrays: Mapping[str, np.ndarray],
        header: Mapping[str, Any],
        path: str | Path,
        backend: str | Backend = "auto",
        custom: Mapping[str, type] | None = None,
    ) -> Self:
        """`load`, for a file that has been read already."""
        if header.get("kind") != cls.kind:
            raise CheckpointError(
                f"{path} holds a {header.get('kind', 'file of another program')}, not a {cls.kind}; "
                f"load it with {'xbp.Graph' if header.get('kind') == 'graph' else 'xbp.Network'}.load."
            )
        try:
            model = cls._rebuild(header, CLASSES | dict(custom or {}), backend)
            model.metadata = dict(header["metadata"])
            model.passes = int(header["passes"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: the description of the model is damaged ({error!r}).") from error
        for section in (model.params, model.buffers):
            try:
                section.update_checked({name: arrays[name] for name in section})
            except (KeyError, ShapeError, DTypeError) as error:
                raise CheckpointError(f"{path} does not fit the model it describes: {error}") from error
        return model
