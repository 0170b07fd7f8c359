"""Metadata routing: weights and rows held out find their way through Pipeline and GridSearchCV; and the HTML repr."""

import html
import re

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

import sklearn
from sklearn import neural_network as theirs
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from xbp import estimators as ours
from xbp.estimators import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
A, B = load_diabetes(return_X_y=True)
A, B = scale(A)[:150], scale(B)[:150]
W = np.where(Y == 2, 4.0, 0.25)
FAST = {"random_state": 0, "max_iter": 8, "hidden_layer_sizes": (6,), "learning_rate_init": 0.02}
OLD = sklearn.__version__.startswith("1.7")
HELD_OUT = {"X_val": X[::3] + 0.01, "y_val": Y[::3]}


@pytest.fixture(autouse=True)
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def weighted(library, name="MLPClassifier"):
    return getattr(library, name)(**FAST).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)


@pytest.mark.parametrize("place", ["pipeline", "search", "search of a pipeline", "bagging"])
def test_weights_of_rows_find_their_way(place):
    if OLD and place == "search of a pipeline":
        pytest.skip("the score of a Pipeline takes no weights before scikit-learn 1.8")
    fitted = []
    for library in (ours, theirs):
        inside = weighted(library)
        piped = make_pipeline(StandardScaler().set_fit_request(sample_weight=True), inside)
        made = {
            "pipeline": lambda piped=piped: piped,
            "search": lambda inside=inside: GridSearchCV(inside, {"alpha": [1e-4, 3.0]}, cv=2),
            "search of a pipeline": lambda piped=piped: GridSearchCV(piped, {"standardscaler__with_std": [True]}, cv=2),
            "bagging": lambda inside=inside: BaggingClassifier(inside, n_estimators=2, random_state=0),
        }[place]()
        fitted.append(made.fit(X, Y, sample_weight=W))
    mine, other = fitted
    np.testing.assert_allclose(mine.predict_proba(X), other.predict_proba(X), rtol=1e-6, atol=1e-9)
    if "search" in place:
        np.testing.assert_allclose(mine.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"])


def test_weights_of_scores():
    results = [
        cross_validate(weighted(library, "MLPRegressor"), A, B, cv=3, params={"sample_weight": W})["test_score"]
        for library in (ours, theirs)
    ]
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_what_nobody_asked_for_is_refused():
    messages = []
    for library in (ours, theirs):
        with pytest.raises(UnsetMetadataPassedError) as caught:
            GridSearchCV(library.MLPClassifier(**FAST), {"alpha": [1.0]}, cv=2).fit(X, Y, sample_weight=W)
        messages.append(re.sub(r"\(hidden.*?\)", "", str(caught.value)))
    assert messages[0] == messages[1]


def test_rows_held_out_find_their_way():
    asks = MLPClassifier(**FAST).set_fit_request(X_val=True, y_val=True, sample_weight_val=True)
    given = HELD_OUT | {"sample_weight_val": W[::3]}
    piped = make_pipeline("passthrough", asks).fit(X, Y, **given)
    plain = MLPClassifier(**FAST).fit(X, Y, **given)
    assert piped[-1].validation_scores_ == plain.validation_scores_
    assert piped[-1].validation_loss_curve_ == plain.validation_loss_curve_
    assert plain.validation_scores_ != MLPClassifier(**FAST).fit(X, Y, **HELD_OUT).validation_scores_


def test_a_pipeline_transforms_the_rows_held_out():
    asks = MLPClassifier(early_stopping=True, **FAST).set_fit_request(X_val=True, y_val=True)
    steps = [("scale", StandardScaler()), ("mlp", asks)]
    piped = Pipeline(steps, transform_input=["X_val"]).fit(X, Y, **HELD_OUT)
    scaler = StandardScaler().fit(X)
    by_hand = MLPClassifier(early_stopping=True, **FAST)
    by_hand.fit(scaler.transform(X), Y, X_val=scaler.transform(HELD_OUT["X_val"]), y_val=HELD_OUT["y_val"])
    assert piped[-1].validation_scores_ == by_hand.validation_scores_
    assert piped[-1].best_validation_score_ == by_hand.best_validation_score_


def test_a_stream_takes_weights_and_classes():
    requests = [
        library.MLPClassifier(**FAST).set_partial_fit_request(sample_weight=True, classes=True).get_metadata_routing()
        for library in (ours, theirs)
    ]
    assert requests[0].partial_fit.requests == requests[1].partial_fit.requests
    asked = MLPRegressor().set_predict_request(return_std=True).get_metadata_routing()
    assert asked.predict.requests == {"return_std": True}


def test_the_html_shows_settings_and_state():
    def words(estimator):
        page = re.sub(r"(?s)<style.*?</style>|<script.*?</script>|<svg.*?</svg>", "", estimator._repr_html_())
        return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))

    made = MLPClassifier(dropout=0.25, **FAST)
    assert "Not fitted" in words(made)
    page = words(made.fit(X, Y))
    assert "MLPClassifier" in page
    assert "Not fitted" not in page
    if "Parameters" in page:  # from scikit-learn 1.7 on
        for name in made.get_params():
            assert f" {name} " in page
        assert "dropout 0.25" in page
    if "Fitted attributes" in page:  # from scikit-learn 1.9 on
        assert "n_iter_ int 8" in page
        assert "coefs_ list" in page
    assert "MLPClassifier" in words(make_pipeline(StandardScaler(), made))
