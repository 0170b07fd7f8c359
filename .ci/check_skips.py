"""Fail where the full suite skipped a test for any reason but those few that are honest.

A skip is how a test goes missing unseen. With torch, jax and every extra installed, what may be missing is a CUDA
device, and what scikit-learn's array API checks ask for besides: Intel's and Apple's devices, and dpnp. Scikit-learn
also skips a check of a method that an estimator may lack. Reads pytest's XML report, and is silent where all is
well, so that pytest has the last word.
"""

from __future__ import annotations

import sys
from xml.etree import ElementTree

HONEST = (
    "cuda",
    "cupy",
    "dpnp is not installed",
    "no xpu device is available",
    "skipping mps device test",
    "does not have a decision_function method",
)

cases = ElementTree.parse(sys.argv[1]).iter("testcase")
skips = [(f"{c.get('classname')}::{c.get('name')}", s.get("message", "")) for c in cases for s in c.iter("skipped")]
wrong = [f"{test}: {reason}" for test, reason in skips if not any(word in reason.lower() for word in HONEST)]
if wrong:
    sys.exit(f"\nFAILED: {len(wrong)} tests were skipped for another reason than CUDA:\n" + "\n".join(wrong))
