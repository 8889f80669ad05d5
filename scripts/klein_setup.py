#!/usr/bin/env python3
"""Run klein-setup from a checkout with nothing installed: ``python3 scripts/klein_setup.py [arguments]``.

The first run makes a private environment inside the checkout (see ``bootstrap.py``); every later run starts from
it.  This file alone must be readable by a Python that is too old, so that the reader gets a sentence and not a
``SyntaxError``: no annotation, no f-string, no import from ``__future__``.
"""

import os
import sys

if sys.version_info < (3, 10):
    sys.stderr.write(
        "klein-setup: this is Python %d.%d (%s); Python 3.10 or newer is needed.\n"
        "  Start it with a newer one, for example: python3.12 scripts/klein_setup.py\n"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    sys.exit(3)

if __name__ == "__main__":
    # Put there by hand: with -I or -P the folder of the script is not on the path.
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from bootstrap import run  # type: ignore[import-not-found]  # a sibling; mypy knows it as scripts.bootstrap

    sys.exit(run("run", ["-m", "provisioner"] + sys.argv[1:]))
