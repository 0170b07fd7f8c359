"""A described network with a batch, what its step gives on NumPy, and what its programs give."""

from __future__ import annotations

import numpy as np

import network_strategies as ns
from network_strategies import LOSSES
from xbp.data import prepare_batch
from xbp.program import Interpreter
from xbp.program.fusion import REDUCTIONS, Access
from xbp.program.views import Linear
from xbp.recording import BATCH, _recorded, flat, inputs_of, signature_of

KINDS = ["step", "scores", "sums", "piece", "apply"]


class Case:
    """A described network with a batch: its step, its arrays, and its programs."""

    def __init__(self, described, n=6, seed=0):
        self.trainer = ns.trainer(described, "eager", metrics=["accuracy"] if described.loss == "softmax" else [])
        loss = LOSSES[described.loss][0]
        self.x, self.t, self.w = prepare_batch(self.trainer.model, loss, *ns.batch(described, n, seed))
        self.step, self.tree = self.trainer._step, self.trainer._tree()
        self.look = signature_of(self.x, self.t, self.w)
        self.scalars = self.trainer._scalars.single(0)

    def recorded(self, what="step", batch=BATCH):
        """Before all passes."""
        return _recorded(what, self.step, self.tree, self.look, batch)

    def given(self, program):
        batch = inputs_of(self.x, self.t, self.w)
        params = self.tree["params"]
        like = next(iter(params.values()))
        grads = {name: np.cos(params[name]) for name in self.step.trainable}
        every = flat({**self.tree, "scalars": self.scalars, "grads": grads}) | batch
        every |= {"share": np.asarray(0.25, like.dtype), "first_row": np.asarray(3, "int32")}
        return {name: every[name] for name in program.inputs}

    def interpreted(self, program):
        with np.errstate(all="ignore"):
            return Interpreter(program, np, device="cpu")(self.given(program))

    def eager(self, what):
        """What the step itself gives, by the names of the program's outputs."""
        step, (params, buffers, state) = self.step, (self.tree[s] for s in ("params", "buffers", "state"))
        batch = (self.x, self.t, self.w)
        with np.errstate(all="ignore"):
            if what == "scores":
                return {"scores": step.scores(params, buffers, self.x, xp=np)}
            if what == "sums":
                return {"sums": step.sums(params, buffers, *batch, xp=np)}
            if what == "piece":
                share, first = np.asarray(0.25, next(iter(params.values())).dtype), np.asarray(3, "int32")
                loss, grads, new = step.piece(params, buffers, *batch, self.scalars, first, share, xp=np)
                return flat({"grads": grads, "buffers": new}) | {"loss": loss}
            if what == "apply":
                grads = {name: np.cos(params[name]) for name in step.trainable}
                params, state = step.apply(params, state, grads, self.scalars, xp=np)
                return flat({"params": params, "state": state})
            params, buffers, state, loss = step(params, buffers, state, *batch, self.scalars, xp=np)
            return flat({"params": params, "buffers": buffers, "state": state}) | {"loss": loss}


def assert_same_bits(a, b):
    for name, value in a.items():
        one, other = np.asarray(value), np.asarray(b[name])
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        # A NaN is a NaN: its sign and payload are nobody's.
        np.testing.assert_array_equal(
            np.where(np.isnan(one), np.inf, one), np.where(np.isnan(other), np.inf, other), name
        )
        np.testing.assert_array_equal(np.signbit(one[~np.isnan(one)]), np.signbit(other[~np.isnan(other)]), name)


def leaves(f, op):
    """What an operation reads, where inlined operands give what they read themselves."""
    shape = op.operands[0].shape if op.function in REDUCTIONS else op.result.shape
    for operand in op.operands:
        a = f.access(operand, shape) if op.function != "matmul" else Access(f.layouts[operand].root, *[Linear(0)] * 3)
        if a.root in f.inlined:
            yield from leaves(f, f.makers[a.root])
        else:
            yield a
