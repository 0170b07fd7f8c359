"""Data that people have: scikit-learn's digits, IDX folders such as MNIST, `.npz` and `.csv` files.

`load` makes any of them a `Dataset`; `load_features` reads new rows for a model that was trained on one, scaled alike.
Files are read once, as streams, and bytes become floats of the asked width without a wider step between.
"""

from .dataset import Dataset, Scaling
from .sources import load, load_features

__all__ = ["Dataset", "Scaling", "load", "load_features"]
