"""The solver "lbfgs" is watched, limited and interrupted as the others are, and says what it has no use for."""

import logging
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

from sklearn import neural_network as theirs
from sklearn.datasets import load_iris

import xbp
from xbp.callbacks import Callback, EarlyStopping, GradientNorm, ReduceLROnPlateau, TargetMetric, TimeLimit
from xbp.estimators import MLPClassifier, MLPRegressor, lbfgs

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
FAST = {"solver": "lbfgs", "random_state": 0, "max_iter": 30, "hidden_layer_sizes": (6,)}


class Watching(Callback):
    """Notes every hook; does `at[epoch]` at the end of that iteration."""

    def __init__(self, **at):
        self.noted, self.losses, self.at = [], [], at

    def on_fit_begin(self, trainer):
        self.noted.append(("begin", trainer.epoch, trainer.epochs_planned))

    def on_chunk_end(self, trainer):
        assert trainer.epoch_progress[0] >= 1
        return self.at.get(f"evaluation{trainer.epoch}", lambda trainer: None)(trainer)

    def on_epoch_end(self, trainer):
        self.noted.append(("end", trainer.epoch, trainer.epochs_planned))
        self.losses.append(trainer.history["loss"][-1])
        return self.at.get(f"iteration{trainer.epoch}", lambda trainer: None)(trainer)

    def on_fit_end(self, trainer):
        self.noted.append(("finish", trainer.epoch, trainer.epochs_planned))


def test_callbacks_see_each_iteration():
    watching = Watching()
    fitted = MLPClassifier(callbacks=[watching], **FAST).fit(X, Y)
    assert watching.noted == [("begin", 0, 30), *(("end", i, 30) for i in range(1, 31)), ("finish", 30, 30)]
    assert len(watching.losses) == fitted.n_iter_ == 30
    assert all(b < a for a, b in zip(watching.losses[:-1], watching.losses[1:], strict=True))
    assert watching.losses[-1] == fitted.loss_
    plain = MLPClassifier(**FAST).fit(X, Y)
    assert plain.loss_ == fitted.loss_
    np.testing.assert_array_equal(plain.predict_proba(X), fitted.predict_proba(X))
    assert not hasattr(fitted, "loss_curve_")


def test_a_callback_ends_the_training_where_it_is():
    watching = Watching(iteration4=lambda trainer: "enough")
    mine = MLPClassifier(callbacks=[watching], **FAST).fit(X, Y)
    short = MLPClassifier(**(FAST | {"max_iter": 4})).fit(X, Y)
    assert mine.n_iter_ == 4
    assert mine.loss_ == short.loss_
    for a, b in zip(mine.coefs_ + mine.intercepts_, short.coefs_ + short.intercepts_, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_callback_sees_in_the_model_is_of_this_iteration():
    seen = []

    def look(trainer):
        scores = trainer.model.predict(X)
        seen.append(xbp.SoftmaxCrossEntropy().forward(scores, Y.astype(np.int32), None, xp=np)[0])
        assert fitted.coefs_[0] is not trainer.model.params["0.W"]
        np.testing.assert_array_equal(fitted.coefs_[0], trainer.model.params["0.W"])

    watching = Watching(**{f"iteration{i}": look for i in range(1, 31)})
    fitted = MLPClassifier(callbacks=[watching], alpha=0.0, **FAST)
    fitted.fit(X, Y)
    np.testing.assert_allclose(seen, watching.losses, rtol=1e-12)


def test_a_time_limit_ends_it_with_what_there_is():
    fitted = MLPClassifier(time_limit=1e-9, **FAST).fit(X, Y)
    assert fitted.n_iter_ == 0
    assert np.isfinite(fitted.loss_)
    assert fitted.predict(X).shape == (150,)
    by_callback = MLPClassifier(callbacks=[TimeLimit(1e-9)], **FAST).fit(X, Y)
    assert by_callback.loss_ == fitted.loss_
    assert MLPClassifier(time_limit=1e6, **FAST).fit(X, Y).n_iter_ == 30


@pytest.mark.parametrize(
    ("callback", "iterations"),
    [
        (TargetMetric(0.5), lambda losses: next(i for i, loss in enumerate(losses, 1) if loss <= 0.5)),
        (EarlyStopping("loss", patience=2, min_delta=10.0), lambda losses: 3),
    ],
    ids=["target", "early stopping"],
)
def test_callbacks_of_xbp_work(callback, iterations):
    watching = Watching()
    fitted = MLPClassifier(callbacks=[watching, callback], **FAST).fit(X, Y)
    assert fitted.n_iter_ == iterations(watching.losses)


def test_the_best_weights_that_a_callback_kept_come_back():
    watching = Watching(iteration5=lambda trainer: trainer.keep_best(), iteration9=lambda trainer: "enough")
    watching.on_fit_end = lambda trainer: trainer.restore_best()
    fitted = MLPClassifier(callbacks=[watching], **FAST).fit(X, Y)
    short = MLPClassifier(**(FAST | {"max_iter": 5})).fit(X, Y)
    assert fitted.loss_ == short.loss_ == watching.losses[4]
    np.testing.assert_array_equal(fitted.coefs_[0], short.coefs_[0])


def test_the_norm_of_the_gradient():
    norms = []
    watching = Watching(**{f"iteration{i}": lambda trainer: norms.append(trainer.gradient_norm()) for i in (1, 2, 3)})
    MLPClassifier(callbacks=[watching], **FAST).fit(X, Y)
    fitted = MLPClassifier(**(FAST | {"max_iter": 3})).fit(X, Y)
    params, step, slopes = {n: p.copy() for n, p in fitted._params().items()}, 1e-6, []
    for p in params.values():
        for place in np.ndindex(p.shape):
            losses, before = [], p[place]
            for moved in (before + step, before - step):
                p[place] = moved
                scores = np.maximum(X @ params["0.W"] + params["0.b"], 0.0) @ params["2.W"] + params["2.b"]
                loss = -xbp.log_softmax(scores)[np.arange(150), Y].mean()
                losses.append(loss + 0.5 * 1e-4 / 150 * sum((params[n] ** 2).sum() for n in ("0.W", "2.W")))
            p[place] = before
            slopes.append((losses[0] - losses[1]) / (2 * step))
    np.testing.assert_allclose(norms[2], np.linalg.norm(slopes), rtol=1e-5)
    limit = norms[1] * (1 + 1e-9)
    assert MLPClassifier(callbacks=[GradientNorm(limit)], **FAST).fit(X, Y).n_iter_ <= 2


def test_there_is_no_rate():
    with pytest.raises(ValueError, match="solver='lbfgs' finds the length of each step by itself; it has no rate"):
        MLPClassifier(callbacks=[ReduceLROnPlateau("loss", patience=1, min_delta=1e9)], **FAST).fit(X, Y)


@pytest.mark.parametrize("moment", ["iteration3", "evaluation3"])
def test_an_interrupt_keeps_the_best_weights(moment):
    watching = Watching(**{moment: lambda trainer: signal.raise_signal(signal.SIGINT)})
    with pytest.warns(UserWarning, match=r"Training interrupted by user\."):
        fitted = MLPClassifier(callbacks=[watching], **FAST).fit(X, Y)
    assert fitted.n_iter_ == 3
    assert fitted.loss_ <= watching.losses[-1]
    assert watching.noted[-1][0] == "finish"
    assert (fitted.predict(X) == Y).mean() > 0.3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_keeps_the_best_weights_too():
    def fail(trainer):
        raise RuntimeError("on purpose")

    watching = Watching(iteration3=fail)
    fitted = MLPClassifier(callbacks=[watching], **FAST)
    with pytest.raises(RuntimeError, match="on purpose"):
        fitted.fit(X, Y)
    short = MLPClassifier(**(FAST | {"max_iter": 3})).fit(X, Y)
    np.testing.assert_array_equal(fitted.coefs_[0], short.coefs_[0])
    assert watching.noted[-1][0] == "finish"


def test_iterations_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="xbp.training"):
        MLPClassifier(**(FAST | {"max_iter": 2})).fit(X, Y)
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["epoch 1 of 2", "epoch 2 of 2"]


def test_what_is_printed_is_scikit_learns():
    """In processes of their own, because the Fortran of an old SciPy keeps what it prints until the end."""
    printed = []
    for library in ("xbp.estimators", "sklearn.neural_network"):
        code = (
            "import warnings; warnings.simplefilter('ignore'); from sklearn.datasets import load_iris;"
            f"from {library} import MLPClassifier as M;"
            "M(verbose=True, solver='lbfgs', random_state=0, max_iter=2, tol=0.1).fit(*load_iris(return_X_y=True))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        printed.append(done.stdout)
    assert printed[0].splitlines()[:4] == printed[1].splitlines()[:4]  # then come numbers with all their digits
    assert len(printed[0].splitlines()) == len(printed[1].splitlines())


@pytest.mark.parametrize("prints", [False, True])
def test_an_old_scipy_is_asked_to_print(prints, monkeypatch):
    given = []
    monkeypatch.setattr(lbfgs, "PRINTS", prints)

    def minimize(function, start, options, **others):
        given.append(options.pop("iprint", None))
        return real(function, start, options=options, **others)

    real = lbfgs.scipy.optimize.minimize
    monkeypatch.setattr(lbfgs.scipy.optimize, "minimize", minimize)
    for verbose in (False, True):
        MLPClassifier(verbose=verbose, **FAST).fit(X, Y)
    assert given == ([-1, 1] if prints else [None, None])


def test_early_stopping_is_for_the_others():
    stopped, plain = (MLPClassifier(early_stopping=e, **FAST).fit(X, Y) for e in (True, False))
    assert stopped.loss_ == plain.loss_
    other = theirs.MLPClassifier(early_stopping=True, **FAST).fit(X, Y)
    for name in ("loss_curve_", "validation_scores_", "best_loss_"):
        assert hasattr(stopped, name) == hasattr(other, name)


def test_rows_held_out_are_refused():
    with pytest.raises(ValueError, match="solver='lbfgs' has no epochs"):
        MLPClassifier(**FAST).fit(X, Y, X_val=X, y_val=Y)


@pytest.mark.parametrize("setting", [{"optimizer": "adamw"}, {"clip_norm": 1.0}, {"schedule": lambda step: 0.1}])
def test_what_is_for_other_solvers_is_refused(setting):
    with pytest.raises(ValueError, match=f"solver='lbfgs' has no use for {next(iter(setting))}="):
        MLPClassifier(**FAST, **setting).fit(X, Y)


def test_statistics_of_batches_are_refused():
    with pytest.raises(ValueError, match="normalization='batch' averages over batches"):
        MLPClassifier(normalization="batch", **FAST).fit(X, Y)
    assert MLPClassifier(normalization="layer", **(FAST | {"max_iter": 200})).fit(X, Y).score(X, Y) > 0.95


@pytest.mark.parametrize("engine", ["numba", "planned", "eager"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_engine_finds_the_same(engine, weighted, monkeypatch):
    if engine == "numba":
        pytest.importorskip("llvmlite", reason="the engine numba needs llvmlite")
    w = np.linspace(0.0, 2.0, 150) if weighted else None
    other = theirs.MLPClassifier(**FAST)
    other.fit(X, Y, w)
    for chunk in (lbfgs.CHUNK, 40):  # in one part, and in four
        monkeypatch.setattr(lbfgs, "CHUNK", chunk)
        monkeypatch.setattr(lbfgs.chunks, "__defaults__", (chunk,))
        mine = MLPClassifier(engine=engine, **FAST).fit(X, Y, w)
        np.testing.assert_allclose(mine.loss_, other.loss_, rtol=1e-5)


class Cubed(xbp.losses.Loss):
    """A loss that no recorder can follow, because it asks a number what it is."""

    def forward(self, y, t, w, *, xp):
        cube = xp.abs(y - t) ** 3
        return xp.asarray(float(xp.mean(cube))), (y, t)

    def backward(self, dloss, cache, *, xp):
        y, t = cache
        return dloss * 3.0 * (y - t) * xp.abs(y - t) / y.shape[0]

    def target_width(self, outputs):
        return outputs


def test_what_cannot_be_compiled_is_computed_as_it_is_written(caplog):
    fitted = MLPRegressor(Cubed(), **FAST).fit(X[:, :3], X[:, 3])
    assert "which is done eagerly" in caplog.text
    assert fitted.score(X[:, :3], X[:, 3]) > 0.8
