"""Where the operating system keeps the certificates it trusts, for programs that know only files."""

from __future__ import annotations

import os
import ssl
import sys


def store_for_old_pips() -> str | None:
    """Return the file or folder of the system's certificates; None on Windows, whose store is neither.

    On macOS it is what this Python's OpenSSL was given, which need not be the keychain.
    """
    if sys.platform == "win32":
        return None
    paths = ssl.get_default_verify_paths()
    return (paths.capath if os.environ.get("SSL_CERT_DIR") else None) or paths.cafile or paths.capath
