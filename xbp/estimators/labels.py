"""Class labels as scikit-learn takes them, and as the losses of xbp take them.

Labels of any kind, strings as well, are looked at on the host, once. What goes to the device are integers 0 ... C-1 for
several classes, 0 and 1 for two, and a column each for labels of which a row may have several.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

__all__ = ["Labels", "weights_of_classes", "weights_of_rows"]


class Labels:
    """The classes of a training, and the way there and back.

    kind       "binary", "multiclass" or "multilabel"
    classes    sorted; 0 ... K-1 for "multilabel"
    outputs    the width of the network's output
    scores     whether each class has a score of its own, also where there are two: then they are "multiclass"
    """

    def __init__(self, y: Any, scores: bool = False) -> None:
        binarizer = LabelBinarizer().fit(y)  # it refuses what is no set of labels, in scikit-learn's words
        self.classes: np.ndarray = binarizer.classes_
        if binarizer.y_type_.startswith("multilabel"):
            self.kind = "multilabel"
        else:
            self.kind = "multiclass" if len(self.classes) > 2 or scores else "binary"
        self.outputs = 1 if self.kind == "binary" else len(self.classes)

    def encoded(self, y: Any) -> np.ndarray:
        """Targets for the loss: int32 (N,), or zeros and ones (N, K) in float32, which hold no more than a bit."""
        if self.kind == "multilabel":
            dense = y.toarray() if sparse.issparse(y) else np.asarray(y)
            if dense.ndim != 2 or dense.shape[1] != len(self.classes):
                raise ValueError(
                    f"y has shape {dense.shape}, and the estimator was fitted to rows of {len(self.classes)} labels. "
                    f"Give zeros and ones (N, {len(self.classes)})."
                )
            bits: np.ndarray = (dense != 0).astype(np.float32)
            return bits
        if sparse.issparse(y) or np.ndim(y) == 2:
            raise ValueError("The object was not fitted with multilabel input.")
        if len(self.classes) == 1 and self.kind == "binary":
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


def weights_of_classes(given: Any, labels: Labels, t: np.ndarray) -> np.ndarray:
    """The weight of each class, (C,); where a row may have several (K, 2), for rows without the label and with it.

    given    "balanced", or weights by label; a list of such, one each, where a row may have several
    t        encoded targets, whose classes "balanced" counts

    Raises `ValueError`, where scikit-learn has words for it in its own.
    """
    if labels.kind != "multilabel":
        y = labels.classes[_codes(t)]
        weights = np.asarray(compute_class_weight(given, classes=labels.classes, y=y), dtype=np.float64)
    else:
        if isinstance(given, dict) or (not isinstance(given, str) and len(given) != t.shape[1]):
            compute_sample_weight(given, t)  # it says what is wrong with them
        each = [given] * t.shape[1] if isinstance(given, str) else given
        weights = np.ones((t.shape[1], 2))
        for row, column, weight in zip(weights, t.T.astype(np.int64), each, strict=True):
            known = np.unique(column) if isinstance(weight, str) else np.arange(2)
            row[known] = compute_class_weight(weight, classes=known, y=column)
    if not np.isfinite(weights).all():
        what = "NaN" if np.isnan(weights).any() else "infinity"
        raise ValueError(f"`class_weight` contains {what}. The weight of a class is a finite number, 0 or more.")
    return weights


def weights_of_rows(weights: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The weights (N,) of rows with the encoded targets t, from those of the classes."""
    if weights.ndim == 1:
        rows: np.ndarray = weights[_codes(t)]
    else:
        rows = np.prod(weights[np.arange(t.shape[1]), t.astype(np.int64)], axis=1)
    return rows


def _codes(t: np.ndarray) -> np.ndarray:
    codes: np.ndarray = t.reshape(len(t)).astype(np.int64)
    return codes
