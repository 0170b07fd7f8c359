"""The maths of back-propagation, written once.

A kernel is a module of two pure functions over arrays of any Array API library:

    forward(x, ..., *, xp)        -> (y, cache)        the formula, and the least that backward needs
    backward(dy, cache, ..., *, xp) -> gradients       one for each array argument of forward, in its order

`dv` is the gradient of the loss with respect to `v`; it has the shape and the dtype of `v`. Options (a slope, an
epsilon) are Python numbers and are given to both. A kernel writes into no argument, draws no random number, reads no
value of an array into Python, and never computes with a length, so a recorded step serves every batch size.

Loss kernels take `forward(y, t, w, ..., *, xp) -> (loss, cache)` and `backward(dloss, cache, ..., *, xp) -> dy`:
targets t, row weights w (N,) or None, and the mean over the batch is taken there and nowhere else.
"""
