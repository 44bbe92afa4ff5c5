"""Ctrl-C, also while libraries load, ends a script with one line in place of a traceback.

Imported by the scripts before everything else.
"""

import sys

_shown = sys.excepthook


def _hook(kind, value, trace):
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        _shown(kind, value, trace)


sys.excepthook = _hook
