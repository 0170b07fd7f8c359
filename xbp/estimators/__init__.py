"""Estimators with the contract of scikit-learn's perceptrons, on any backend: a thin layer over Trainer."""

from .classifier import MLPClassifier
from .regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
