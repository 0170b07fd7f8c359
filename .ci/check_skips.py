"""Fail where the full suite skipped a test for any reason but CUDA.

A skip is how a test goes missing unseen: with torch, jax and every extra installed, a missing CUDA device is the only
honest one. Reads pytest's XML report, and is silent where all is well, so that pytest has the last word.
"""

from __future__ import annotations

import sys
from xml.etree import ElementTree

cases = ElementTree.parse(sys.argv[1]).iter("testcase")
skips = [(f"{c.get('classname')}::{c.get('name')}", s.get("message", "")) for c in cases for s in c.iter("skipped")]
wrong = [f"{test}: {reason}" for test, reason in skips if not any(word in reason.lower() for word in ("cuda", "cupy"))]
if wrong:
    sys.exit(f"\nFAILED: {len(wrong)} tests were skipped for a reason other than CUDA:\n" + "\n".join(wrong))
