"""scikit-learn's face of a search: fit, predict, clone, pickle, pipelines, scikit-learn's own checks."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from autopeft import AutoPEFTClassifier, AutoPEFTRegressor
from tests.models import WORDS, bert

SETTINGS = {"training": {"steps": 6, "precision": "fp32", "attention": "eager"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("model"))


def texts(n_rows=60):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 4)) for _ in range(n_rows)]


@pytest.fixture(scope="module")
def fitted(model, tmp_path_factory):
    rows = texts()
    estimator = AutoPEFTClassifier(model, trials=4, settings=SETTINGS, runs=str(tmp_path_factory.mktemp("runs")))
    return estimator.fit(rows, np.array(["yes" if "good" in text else "no" for text in rows]))


def test_a_classifier_predicts_in_the_order_of_its_classes(fitted):
    rows = texts(9)
    assert list(fitted.classes_) == ["no", "yes"]
    chances = fitted.predict_proba(rows)
    assert chances.shape == (9, 2)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-5)
    assert list(fitted.predict(rows)) == [fitted.classes_[index] for index in chances.argmax(axis=1)]
    assert 0 <= fitted.score(rows, ["no"] * 9) <= 1


def test_what_it_found_is_shown(fitted):
    assert len(fitted.leaderboard()) == 4
    scores = fitted.front_["accuracy"]
    assert list(scores) == sorted(scores, reverse=True) and fitted.front_["on_front"].all()
    assert fitted.best_config_ == fitted.run_.pick("best").params
    assert fitted.leaderboard()["accuracy"][0] == scores[0]


def test_numbers_stay_numbers_as_classes(model, tmp_path):
    rows = texts(30)
    estimator = AutoPEFTClassifier(model, trials=1, settings=SETTINGS, runs=str(tmp_path))
    found = estimator.fit(pd.DataFrame({"words": rows}), [7 if "bad" in text else 11 for text in rows]).predict(rows)
    assert found.dtype.kind == "i" and set(found) <= {7, 11}


def test_a_regressor_of_pairs(model, tmp_path):
    pairs = list(zip(texts(40), reversed(texts(40)), strict=True))
    estimator = AutoPEFTRegressor(model, trials=1, settings=SETTINGS, runs=str(tmp_path))
    values = estimator.fit(pairs, np.linspace(0, 5, 40)).predict(pairs[:3])
    assert values.shape == (3,) and np.isfinite(values).all()
    assert estimator.n_features_in_ == 2
    with pytest.raises(ValueError, match="X has 1 columns of texts, it was fitted on 2"):
        estimator.predict(["good"])


def test_a_pickle_predicts_without_its_run(model, tmp_path):
    rows = texts(30)
    estimator = AutoPEFTClassifier(model, trials=1, settings=SETTINGS, runs=str(tmp_path / "runs"))
    estimator.fit(rows, [text.split()[0] == "good" for text in rows])
    expected = estimator.predict_proba(rows)
    data = pickle.dumps(estimator)
    assert len(pickle.loads(data).leaderboard()) == 1  # noqa: S301  (this test wrote it)
    shutil.rmtree(tmp_path / "runs")
    again = pickle.loads(data)  # noqa: S301  (this test wrote it)
    np.testing.assert_array_equal(again.predict_proba(rows), expected)
    assert again.best_config_ == estimator.best_config_
    with pytest.raises(AttributeError, match="the run is not at"):
        again.leaderboard()


def test_in_a_pipeline_and_cloned(fitted, model, tmp_path):
    copy = clone(fitted).set_params(runs=str(tmp_path), trials=1)
    assert copy.get_params()["model"] == model
    with pytest.raises(NotFittedError):
        copy.predict(["good"])
    lower = FunctionTransformer(lambda rows: [row.lower() for row in rows])
    rows = texts(30)
    pipeline = make_pipeline(lower, copy).fit([row.upper() for row in rows], ["a", "b", "c"] * 10)
    assert set(pipeline.predict(["GOOD DAY"])) <= {"a", "b", "c"}


@pytest.mark.parametrize(
    ("X", "y", "says"),
    [
        ([[1.0, 2.0]] * 4, [0, 1, 0, 1], "X holds a float in row 0: expected texts"),
        ([], [], "X has no rows"),
        (["a", None], [0, 1], "X holds a NoneType in row 1"),
        (["a", "b"], [0, 1, 1], "X has 2 rows, y has 3"),
        (["a", "b"], [1, 1], "needs samples of two classes"),
        (["a", "b"], None, "requires y to be passed"),
        (["a", "b"], ["x", None], "y has missing values"),
        ([("a", "b", "c")] * 2, [0, 1], "X has 3 columns"),
    ],
)
def test_bad_input_is_a_value_error_that_says_what_was_expected(model, tmp_path, X, y, says):
    with pytest.raises(ValueError, match=says):
        AutoPEFTClassifier(model, runs=str(tmp_path)).fit(X, y)


def test_a_model_is_needed(tmp_path):
    with pytest.raises(ValueError, match="model: give the folder"):
        AutoPEFTClassifier(runs=str(tmp_path)).fit(["a", "b"], [0, 1])


# scikit-learn's checks fit on matrices of numbers, and texts are no numbers: these fail, each by our message that says so.
FITS_NUMBERS = """
    check_dict_unchanged check_dont_overwrite_parameters check_dtype_object check_estimators_dtypes
    check_estimators_fit_returns_self check_estimators_overwrite_params check_estimators_pickle
    check_f_contiguous_array_estimator check_fit2d_predict1d check_fit_check_is_fitted check_fit_idempotent
    check_fit_score_takes_y check_methods_sample_order_invariance check_methods_subset_invariance
    check_n_features_in check_n_features_in_after_fitting check_pipeline_consistency check_readonly_memmap_input
    check_supervised_y_2d
"""
FITS_NUMBERS_AS_CLASSES = """
    check_classifier_data_not_an_array check_classifiers_classes check_classifiers_train
"""
FITS_NUMBERS_AS_VALUES = """
    check_regressor_data_not_an_array check_regressors_int check_regressors_no_decision_function
    check_regressors_train
"""
# These expect a certain message of what is wrong with the numbers (too few, not finite, complex). Ours says: no texts.
EXPECTS_A_MESSAGE_ON_NUMBERS = """
    check_estimators_empty_data_messages check_estimators_nan_inf check_fit2d_1feature check_fit2d_1sample
    check_positive_only_tag_during_fit
"""
EXPECTS_TO_TRAIN_ON_ONE_CLASS = "check_classifiers_one_label"
EXPECTED = {
    AutoPEFTClassifier: (
        FITS_NUMBERS,
        FITS_NUMBERS_AS_CLASSES,
        EXPECTS_A_MESSAGE_ON_NUMBERS,
        EXPECTS_TO_TRAIN_ON_ONE_CLASS,
    ),
    AutoPEFTRegressor: (FITS_NUMBERS, FITS_NUMBERS_AS_VALUES, EXPECTS_A_MESSAGE_ON_NUMBERS),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_scikit_learn_s_own_checks(kind, model, tmp_path):
    """All others pass: construction, parameters, cloning, tags, messages on targets, refusals before fit."""
    found = check_estimator(kind(model, trials=1, runs=str(tmp_path)), on_skip=None, on_fail=None)
    names = {status: {r["check_name"] for r in found if r["status"] == status} for status in ("failed", "passed")}
    assert names["failed"] == set(" ".join(EXPECTED[kind]).split())
    assert len(names["passed"]) >= 15
    assert list(tmp_path.iterdir()) == [], "a refused input leaves nothing behind"
