"""Bad input is refused before the first step, by an error that names the thing, the value, the rule and the way out."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from training_helpers import BACKENDS, assert_same, backend_or_skip, blobs, classifier, host, trainer_for

X, T = blobs(20)


def with_value(value, row=4, column=3):
    x = X.copy()
    x[row, column] = value
    return x


CASES = {
    "too wide": ((np.ones((20, 7)), T), xbp.ShapeError, r"takes rows of width 6.*\(7,\)"),
    "one row as a vector": ((X[0], T[:1]), xbp.ShapeError, r"\(N, D\).*\(6,\).*x\[None, :\]"),
    "images": ((np.ones((20, 2, 3)), T), xbp.ShapeError, r"flatten.*reshape"),
    "a number": ((3.0, T), xbp.ShapeError, r"\(N, D\)"),
    "no rows": ((X[:0], T[:0]), xbp.ShapeError, "no rows"),
    "ragged lists": (([[1.0, 2.0], [3.0]], T[:2]), xbp.ShapeError, "not a regular array"),
    "text": ((np.full((20, 6), "a"), T), xbp.DTypeError, "real numbers.*<U1"),
    "complex": ((X * 1j, T), xbp.DTypeError, "complex"),
    "nan": ((with_value(np.nan), T), xbp.DataError, "nan at row 4, column 3"),
    "infinite": ((with_value(-np.inf), T), xbp.DataError, "-inf at row 4, column 3"),
    "no targets": ((X, None), xbp.DataError, "t is None"),
    "other number of targets": ((X, T[:-1]), xbp.ShapeError, r"20 rows.*\(19,\)"),
    "negative label": ((X, np.where(T == 0, -1, T)), xbp.LabelError, r"0 \.\.\. 2.*from -1 to 2"),
    "label too large": ((X, T + 1), xbp.LabelError, r"0 \.\.\. 2.*3 outputs.*from 1 to 3"),
    "float labels": ((X, T.astype(float)), xbp.LabelError, "integers.*float.*astype"),
    "names as labels": ((X, np.array(["a", "b"])[T % 2]), xbp.LabelError, "<U1.*np.unique"),
    "probabilities of another width": ((X, np.ones((20, 4)) / 4), xbp.ShapeError, r"C = 3.*\(20, 4\)"),
    "probabilities that do not sum to 1": ((X, np.ones((20, 3))), xbp.LabelError, "sum to 1"),
    "weights of another length": ((X, T, np.ones(3)), xbp.ShapeError, r"\(20,\).*\(3,\)"),
    "negative weights": ((X, T, -np.ones(20)), xbp.DataError, "negative"),
    "nan weights": ((X, T, np.full(20, np.nan)), xbp.DataError, "sample_weight contains nan at row 0"),
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_fit_refuses_and_changes_nothing(case, name):
    (x, t, *w), error, message = CASES[case]
    trainer = trainer_for(classifier(backend_or_skip(name)))
    before = host(trainer.model, trainer.model.params)
    with pytest.raises(error, match=f"(?s){message}"):
        trainer.fit(x, t, sample_weight=w[0] if w else None)
    assert issubclass(error, xbp.XBPError)
    assert trainer.steps == 0
    assert_same(before, host(trainer.model, trainer.model.params))


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("no targets")])
def test_evaluate_and_validation_refuse_too(case):
    (x, t, *w), error, message = CASES[case]
    trainer = trainer_for(classifier())
    with pytest.raises(error, match=f"(?s){message}"):
        trainer.evaluate(x, t, *w)
    with pytest.raises(error, match=f"(?s){message}"):
        trainer.fit(X, T, validation=(x, t, *w))
    assert trainer.steps == 0


@pytest.mark.parametrize("case", ["too wide", "one row as a vector", "images", "text", "nan", "infinite"])
def test_predict_refuses_too(case):
    (x, *_), error, message = CASES[case]
    with pytest.raises(error, match=f"(?s){message}"):
        classifier().predict(x)


def test_nan_in_an_array_of_the_device_is_located():
    torch = pytest.importorskip("torch", reason="needs arrays of a second library")
    trainer = trainer_for(classifier("torch"))
    with pytest.raises(xbp.DataError, match="nan at row 4, column 3"):
        trainer.fit(torch.asarray(with_value(np.nan)), torch.asarray(T))


def test_nan_in_a_memory_map_is_located_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("xbp.inputs.BLOCK", 12)
    np.save(tmp_path / "x.npy", with_value(np.nan, row=17))
    with pytest.raises(xbp.DataError, match="nan at row 17, column 3"):
        trainer_for(classifier()).fit(np.load(tmp_path / "x.npy", mmap_mode="r"), T)


def test_arrays_of_another_library_are_refused_by_name():
    torch = pytest.importorskip("torch", reason="needs arrays of a second library")
    with pytest.raises(xbp.DTypeError, match=r'torch array.*backend=.numpy.*backend="torch"'):
        trainer_for(classifier()).fit(torch.asarray(X), T)
    with pytest.raises(xbp.DTypeError, match="torch array"):
        trainer_for(classifier()).fit(X, torch.asarray(T))
    with pytest.raises(xbp.DTypeError, match="torch array"):
        classifier().params["0.b"] = torch.zeros(16)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: xbp.Network([xbp.Affine(4, 5), xbp.Affine(6, 2)]), xbp.ShapeError, r"'1'.*width 6.*\(5,\)"),
        (lambda: xbp.Network([]), xbp.ShapeError, "at least one layer"),
        (lambda: xbp.Network([xbp.ReLU]), TypeError, r"write ReLU\(\.\.\.\)"),
        (lambda: xbp.Network(["relu"]), TypeError, r"layers\[0\] is no layer"),
        (lambda: xbp.Network([xbp.Affine(4, 0)]), xbp.ShapeError, "out_features.*0"),
        (lambda: xbp.Network([xbp.Affine(4, 2)], dtype="float16"), xbp.DTypeError, "float16"),
        (lambda: xbp.Network([xbp.Affine(4, 2)], seed=-1), ValueError, "seed.*-1"),
        (lambda: xbp.Network([xbp.Affine(4, 2)], backend="nump"), xbp.BackendUnavailable, "'numpy'"),
        (lambda: xbp.Affine(4, 2, init="hee"), xbp.NameUnknown, "Did you mean 'he'"),
        (lambda: xbp.Dropout(1.0), ValueError, "below 1"),
        (lambda: xbp.Adam(-1), ValueError, "-1"),
        (lambda: trainer_for(classifier(), engine="egaer"), xbp.NameUnknown, "Did you mean 'eager'"),
        (lambda: trainer_for(classifier(), metrics=["acuracy"]), xbp.NameUnknown, "Did you mean 'accuracy'"),
        (lambda: trainer_for(classifier(), loss=xbp.SoftmaxCrossEntropy), TypeError, r"Write SoftmaxCrossEntropy\("),
        (lambda: trainer_for(classifier(), loss=xbp.GaussianNLL()), xbp.ShapeError, "two outputs a target"),
        (lambda: trainer_for(classifier(), clip_norm=0), ValueError, "clip_norm"),
        (lambda: trainer_for(classifier(), accumulate=0), ValueError, "accumulate"),
        (lambda: trainer_for(classifier()).fit(X, T, batch_size=0), ValueError, "batch_size"),
        (lambda: trainer_for(classifier()).fit(X, T, epochs=-1), ValueError, "epochs"),
        (lambda: trainer_for(classifier()).fit(X, T, epochs=1.5), ValueError, "epochs.*1.5"),
        (lambda: trainer_for(classifier()).fit(X, T, validation=X), ValueError, r"\(x, t\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        make()


def test_one_output_never_broadcasts_against_the_rows():
    model = xbp.Network([xbp.Affine(6, 1)], backend="numpy", dtype="float64")
    trainer = xbp.Trainer(model, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.0))
    y = model.predict(X)[:, 0]
    assert trainer.evaluate(X, T)["loss"] == pytest.approx(((y - T) ** 2).mean(), rel=1e-12)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    from xbp import storage

    classifier().save(tmp_path / "m")
    arrays, header = storage.read(tmp_path / "m")
    header["model"]["layers"][0]["out_features"] = 17
    header["model"]["layers"][2]["in_features"] = 17
    storage.write(tmp_path / "m", arrays, header)
    with pytest.raises(xbp.CheckpointError, match=r"(?s)0\.W.*17.*16"):
        xbp.Network.load(tmp_path / "m")
    header["model"]["layers"][1]["type"] = "os.system"
    storage.write(tmp_path / "m", arrays, header)
    with pytest.raises(xbp.CheckpointError, match=r"os\.system.*custom="):
        xbp.Network.load(tmp_path / "m")


def test_a_last_step_that_ruins_the_weights_is_noticed_in_its_own_epoch():
    trainer = trainer_for(classifier(), optimizer=xbp.SGD(1e30))
    before = host(trainer.model, trainer.model.params)
    with np.errstate(all="ignore"), pytest.raises(xbp.NonFiniteLoss, match="after step 1 of epoch 1"):
        trainer.fit(X, T, epochs=3, batch_size=20)
    assert_same(before, host(trainer.model, trainer.model.params))
    assert trainer.history == {}


def test_the_smallest_int64_is_no_class():
    with pytest.raises(xbp.LabelError, match="-9223372036854775808"):
        trainer_for(classifier()).fit(X, np.full(20, -(2**63)))


def test_masked_targets_are_refused():
    with pytest.raises(xbp.DataError, match="masked"):
        trainer_for(classifier()).fit(X, np.ma.array(T, mask=T == 0))


@pytest.mark.parametrize("name", BACKENDS)
def test_streams_are_checked_batch_by_batch(name):
    backend = backend_or_skip(name)

    def fit(*batches, **options):
        return trainer_for(classifier(backend)).fit(list(batches), **options)

    own = backend.asarray(X), backend.asarray(T.astype(np.int32)), backend.asarray(np.ones(20, np.float32))
    assert fit(own)["loss"] == pytest.approx(fit((X, T))["loss"])
    for batch, error in (
        ((X, T + 5), xbp.LabelError),
        ((with_value(np.nan), T), xbp.DataError),
        ((X, T, -np.ones(20)), xbp.DataError),
    ):
        with pytest.raises(error):
            fit(batch)
    with pytest.raises(xbp.DataError, match="sample_weight="):
        fit((X, T), sample_weight=np.ones(20))
    with pytest.raises(xbp.DataError, match="gave none"):
        trainer_for(classifier(backend)).fit(iter([]))


@pytest.mark.parametrize("rate", [-1.0, None, float("nan"), "a"])
def test_a_schedule_that_gives_no_rate_is_named(rate):
    with pytest.raises(ValueError, match=r"(?s)schedule.*at step 0"):
        trainer_for(classifier(), optimizer=xbp.Adam(lambda step: rate)).fit(X, T)


def test_decay_of_an_unknown_parameter_is_refused():
    with pytest.raises(xbp.NameUnknown, match=r"decay=.*'9\.W'"):
        trainer_for(classifier(), optimizer=xbp.Adam(weight_decay=0.1, decay=["9.W"]))
