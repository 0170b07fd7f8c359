"""The account of the articles: every id stands at a test, or here with the reason why it does not."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from inventory import ids

# How many ideas (S) and defects (B) each article has: S0-01 ... S0-46, and so on.
COUNTS = {"S0": 46, "S1": 21, "S2": 17, "S3": 20, "B0": 23, "B1": 12, "B2": 4, "B3": 13}

LATER = "comes with the explanatory drawings, the weight explainer and the gradient-free trainer"
TEXT = "says something about the text, which no code can show"
EXCLUDED = {
    "S0-02": TEXT,  # the history of back-propagation
    "S0-46": TEXT,  # the sources that the article names
    "B-all": TEXT,  # the indentation of the printed code is lost
    "S0-03": LATER,
    "S0-07": LATER,
    "S0-17": LATER,
    "S2-16": LATER,
    "S3-06": LATER,
    "B0-23": LATER,
    "B2-01": LATER,
    "B2-02": LATER,
    "B2-03": LATER,
}
ALL = {f"{article}-{i:02}" for article, count in COUNTS.items() for i in range(1, count + 1)} | {"B-all"}
FOLDER = Path(__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("test_*.py") if path.stem != Path(__file__).stem)


def proofs() -> dict[str, list[str]]:
    """The tests that stand for each id."""
    found: dict[str, list[str]] = {}
    for module in MODULES:
        for name, test in vars(importlib.import_module(module)).items():
            for article_id in getattr(test, "article_ids", ()):
                found.setdefault(article_id, []).append(f"{module}.{name}")
    return found


def test_every_id_is_proved_by_a_test_or_excluded_with_a_reason():
    assert set(EXCLUDED) <= ALL
    assert set(proofs()) == ALL - set(EXCLUDED)


@pytest.mark.parametrize("module", MODULES)
def test_every_test_of_an_article_names_its_ids(module):
    tests = {n: f for n, f in vars(importlib.import_module(module)).items() if inspect.isfunction(f)}
    unnamed = [n for n, f in tests.items() if n.startswith("test_") and not getattr(f, "article_ids", ())]
    never_run = [n for n, f in tests.items() if hasattr(f, "article_ids") and not n.startswith("test_")]
    assert (unnamed, never_run) == ([], [])


def test_the_account_would_notice_an_id_that_is_forgotten_or_mistyped(monkeypatch):
    module = importlib.import_module(MODULES[0])

    @ids("S9-99")
    def test_of_nothing():
        pass

    monkeypatch.setattr(module, "test_of_nothing", test_of_nothing, raising=False)
    assert set(proofs()) - ALL == {"S9-99"}
