"""Class labels as scikit-learn takes them, and as the losses of xbp take them.

Labels of any kind, strings as well, are looked at on the host, once. What goes to the device are integers 0 ... C-1 for
several classes, 0 and 1 for two, and a column each for labels of which a row may have several.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.preprocessing import LabelBinarizer

__all__ = ["Labels"]


class Labels:
    """The classes of a training, and the way there and back.

    kind       "binary", "multiclass" or "multilabel"
    classes    sorted; 0 ... K-1 for "multilabel"
    outputs    the width of the network's output
    """

    def __init__(self, y: Any) -> None:
        binarizer = LabelBinarizer().fit(y)  # it refuses what is no set of labels, in scikit-learn's words
        self.classes: np.ndarray = binarizer.classes_
        if binarizer.y_type_.startswith("multilabel"):
            self.kind = "multilabel"
        else:
            self.kind = "multiclass" if len(self.classes) > 2 else "binary"
        self.outputs = 1 if self.kind == "binary" else len(self.classes)

    def encoded(self, y: Any) -> np.ndarray:
        """Targets for the loss: int32 (N,), or zeros and ones (N, K) in float32, which hold no more than a bit."""
        if self.kind == "multilabel":
            dense = y.toarray() if sparse.issparse(y) else np.asarray(y)
            bits: np.ndarray = (dense != 0).astype(np.float32)
            return bits
        if sparse.issparse(y) or np.ndim(y) == 2:
            raise ValueError("The object was not fitted with multilabel input.")
        if len(self.classes) == 1:
            return np.zeros((len(y), 1), dtype=np.float32)
        codes: np.ndarray = np.searchsorted(self.classes, y)
        return codes.astype(np.int32) if self.kind == "multiclass" else codes.astype(np.float32)[:, None]

    def quickly(self, y: np.ndarray) -> np.ndarray | None:
        """`encoded` for a plain array (N,) that was not checked; None where it has to be looked at more closely."""
        if self.kind == "multilabel" or len(self.classes) < 2 or y.dtype.kind != self.classes.dtype.kind:
            return None
        codes: np.ndarray = np.searchsorted(self.classes, y)
        if (self.classes[np.minimum(codes, len(self.classes) - 1)] != y).any():
            return None
        return codes.astype(np.int32) if self.kind == "multiclass" else codes.astype(np.float32)[:, None]
