"""Scikit-learn's own checks of an estimator: all of them, without expected failures."""

import os
from importlib.util import find_spec

import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

from unittest.case import SkipTest

import sklearn
from sklearn.utils.estimator_checks import parametrize_with_checks

import xbp
from xbp.estimators import MLPClassifier, MLPRegressor

HERE = ("numpy", "array_api_strict", *(["torch"] if find_spec("torch") else []))
OLD = sklearn.__version__.startswith(("1.7", "1.8"))
CHECKS = parametrize_with_checks([MLPClassifier(max_iter=50), MLPRegressor(max_iter=50)])
# A list, because scikit-learn 1.7 and older make it a generator, of which pytest 9 says that pytest 10 will refuse it.
PARAMETRIZED = pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)


def on_this_machine(check):
    """Whether an array API check concerns a library and a device that are here, so that it may not be skipped."""
    told = check.keywords
    places = [told[k] for k in ("X_ns_and_device", "other_ns_and_device") if k in told]
    names = [(p.xp, str(p.device)) for p in places] or [(told.get("array_namespace"), str(told.get("device_name")))]
    return all(name in HERE and device not in ("cuda", "xpu", "mps") for name, device in names)


def needs_cuda(check):
    return check.keywords.get("array_namespace") == "cupy"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@PARAMETRIZED
def test_contract(estimator, check):
    if needs_cuda(check) and not any(b.available for b in xbp.available_backends() if b.name == "cupy"):
        pytest.skip("no CUDA device answers")
    try:
        check(estimator)
    except SkipTest as skipped:
        array_api = "array_api" in getattr(check, "func", check).__name__
        if array_api and os.environ.get("SCIPY_ARRAY_API") == "1" and on_this_machine(check):
            pytest.fail(f"An array API check was skipped: {skipped}")
        raise
    except AssertionError as failed:
        if OLD and "'classes_' attribute is in wrong namespace" in str(failed):
            pytest.skip("from scikit-learn 1.9 on, classes_ may lie on the host while X does not, as words have to")
        raise
