"""The command line: `xbp`, and `python -m xbp`.

Each command is a module of its own, a thin one: it reads options, calls the library as any program could, and prints.
What runs is the same as in Python, and a model that the command line trained opens there.
"""

from .commands import app

__all__ = ["app"]
