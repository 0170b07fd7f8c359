"""Which ideas of the four articles a test stands for.

The project grew out of four articles on back-propagation. Everything that they show or promise has an id, `S0-01` to
`S3-20` after the article and its order there, and so has every defect of their code, `B0-01` to `B3-13`. A test says
with `@ids` which of them it proves; `test_inventory.py` keeps the account.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])


def ids(*names: str) -> Callable[[Test], Test]:
    """Note on a test function the ids that it proves."""

    def note(test: Test) -> Test:
        test.article_ids = names  # type: ignore[attr-defined]  # functions take attributes
        return test

    return note
