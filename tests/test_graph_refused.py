"""Graphs that cannot be, and input that does not fit: refused by the names of nodes and inputs."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp.errors import CacheEmpty, DTypeError, NameUnknown, ShapeError

ARTICLE = {"c": (xbp.Add(), "a", "b"), "d": (xbp.Add(), "b", "one"), "e": (xbp.Mul(), "c", "d")}


def graph(space, nodes, inputs, output, **options):
    options = {"dtype": space.dtype, **options}
    return xbp.Graph(nodes, inputs=inputs, output=output, backend=space.backend, **options)


def article(space, nodes=ARTICLE, **options):
    return graph(space, nodes, ["a", "b", "one"], "e", **options)


def numbers(space, **values):
    return {name: space.put(np.asarray(float(v))) for name, v in values.items()}


Affine23, Affine33 = xbp.Affine(2, 3), xbp.Affine(3, 3)
BAD = {
    "a cycle": (
        {"p": (xbp.Add(), "q", "x"), "q": (xbp.Tanh(), "p")},
        ["x"],
        "p",
        ShapeError,
        r"a cycle through p, q; a value",
    ),
    "a node of itself": ({"p": (xbp.Add(), "p", "x")}, ["x"], "p", ShapeError, r"The graph has a cycle through p;"),
    "unknown input": (
        {"p": (xbp.Tanh(), "X1")},
        ["x1"],
        "p",
        NameUnknown,
        r"Unknown input of node 'p': 'X1'\. Did you mean 'x1'\? Known: p, x1",
    ),
    "unknown output": (
        {"pred": (xbp.Tanh(), "x")},
        ["x"],
        "prd",
        NameUnknown,
        r"Unknown output of the graph 'prd'\. Did you mean 'pred'\?",
    ),
    "too few inputs": (
        {"p": (xbp.Add(), "x")},
        ["x"],
        "p",
        ShapeError,
        r"Node 'p' is Add\(\), which takes 2 inputs; it is given 1",
    ),
    "too many inputs": (
        {"p": (xbp.Tanh(), "x", "x")},
        ["x"],
        "p",
        ShapeError,
        r"Node 'p' is Tanh\(\), which takes 1 inputs; it is given 2",
    ),
    "no inputs": ({"p": (xbp.Tanh(),)}, ["x"], "p", ShapeError, r"takes 1 inputs; it is given 0"),
    "input and node": (
        {"x": (xbp.Tanh(), "z")},
        ["x", "z"],
        "x",
        NameUnknown,
        r"\['x'\] are both inputs and nodes of the graph",
    ),
    "widths": (
        {"p": (Affine23, "x"), "q": (xbp.Affine(2, 1), "p")},
        ["x"],
        "q",
        ShapeError,
        r"Layer 'q', after 'p': .* width 2, .* \(3,\)",
    ),
    "widths that meet": (
        {"p": (Affine23, "x"), "q": (xbp.Affine(2, 2), "x"), "y": (xbp.Mul(), "p", "q")},
        ["x"],
        "y",
        ShapeError,
        r"Layer 'y', after 'p', 'q': Mul gets rows of shapes \(3,\) and \(2,\), which do not broadcast",
    ),
    "nothing learns": (
        {"y": (xbp.Tanh(), "x"), "u": (Affine33, "x")},
        ["x"],
        "y",
        ShapeError,
        r"'y' does not depend on node 'u', whose",
    ),
    "a class": ({"p": (xbp.Tanh, "x")}, ["x"], "p", TypeError, r"node 'p' is the class Tanh; write Tanh\(\.\.\.\)"),
    "a name for a layer": ({"p": ("tanh", "x")}, ["x"], "p", TypeError, r"node 'p' is no layer but a str \('tanh'\)"),
    "no tuple": (
        {"p": xbp.Tanh()},
        ["x"],
        "p",
        TypeError,
        r"Node 'p' must be \(layer, input, \.\.\.\); it is Tanh\(\)",
    ),
    "an empty tuple": ({"p": ()}, ["x"], "p", TypeError, r"Node 'p' must be \(layer, input, \.\.\.\); it is \(\)"),
    "a string of inputs": (
        {"p": (xbp.Tanh(), "xy")},
        "xy",
        "p",
        TypeError,
        r"inputs must be a list of names; it is the string 'xy'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_graph_that_cannot_be_is_refused_when_it_is_made(case):
    nodes, inputs, output, error, match = BAD[case]
    with pytest.raises(error, match=match):
        xbp.Graph(nodes, inputs=inputs, output=output, backend="numpy")


def test_inputs_are_given_by_name_all_of_them(space):
    g = article(space)
    for given, text in (
        ({"a": 1.0}, "it is given a"),
        ({}, "it is given none"),
        ({**dict.fromkeys("ab", 1.0), "two": 1.0}, "a, b, two"),
    ):
        with pytest.raises(ShapeError, match=rf"The model has inputs a, b, one; .*{text}"):
            g.forward(given)
    with pytest.raises(ShapeError, match=r"The model has inputs a, b, one; give a mapping from these names to arrays"):
        g.forward(space.put(np.ones((2, 2))))
    with pytest.raises(DTypeError, match=r"b must hold real numbers; its dtype is <U1"):
        g.forward({"a": 1.0, "b": "b", "one": 1.0})


def test_widths_of_batches_are_checked_whatever_the_input_is_called(space):
    g = graph(space, {"y": (xbp.Affine(4, 2), "pixels")}, ["pixels"], "y")
    for method in (g.forward, g.predict):
        with pytest.raises(ShapeError, match=r"Layer 'y', after 'pixels': .* takes rows of width 4, .* shape \(5,\)"):
            method(space.put(np.ones((3, 5))))
    two = graph(space, {"y": (xbp.Add(), "a", "b")}, ["a", "b"], "y")
    with pytest.raises(ShapeError, match=r"Add gets rows of shapes \(2,\) and \(3,\), which do not broadcast"):
        two.forward({"a": space.put(np.ones((4, 2))), "b": space.put(np.ones((4, 3)))})


def test_dy_has_the_shape_of_the_output_and_a_second_backward_raises(space):
    g = article(space)
    values = numbers(space, a=2, b=1, one=1)
    with pytest.raises(CacheEmpty):
        g.backward(1.0)
    g.forward(values)
    with pytest.raises(ShapeError, match=r"dy must have the shape of the output, \(\); it has \(1,\)"):
        g.backward(space.put(np.ones(1)))
    g.backward(1.0)
    with pytest.raises(CacheEmpty, match=r"One forward serves one backward"):
        g.backward(1.0)
