"""Which of the user's variables the programs we start get: a list of what passes; everything else stays here.

Tokens, cloud keys and passwords of package indexes are for klein-setup or for other programs, and ComfyUI runs nodes of
third parties.  This is no sandbox: a program of the same user can still read the user's files.  The list for users is
``docs/child-processes.md``; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

PASSED = frozenset(
    {
        # where programs and the user's folders are
        "PATH", "PATHEXT", "HOME", "USERPROFILE", "HOMEDRIVE", "HOMEPATH", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA",
        "ALLUSERSPROFILE", "PUBLIC", "PROGRAMFILES", "PROGRAMFILES(X86)", "PROGRAMW6432", "COMMONPROGRAMFILES",
        "COMMONPROGRAMFILES(X86)", "COMMONPROGRAMW6432", "TMPDIR", "TEMP", "TMP",
        # the system
        "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "OS", "COMPUTERNAME", "NUMBER_OF_PROCESSORS",
        "PROCESSOR_ARCHITECTURE", "PROCESSOR_IDENTIFIER", "USER", "USERNAME", "LOGNAME", "SHELL", "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "NIX_LD", "NIX_LD_LIBRARY_PATH",
        # language, time, terminal, display
        "LANG", "LANGUAGE", "TZ", "TERM", "NO_COLOR", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY",
        # the network: proxies and certificates
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        # the folders of the Hub's cache, the Hub's address, and whether it may be asked; never who asks
        "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE", "HF_DATASETS_CACHE",
        "TRANSFORMERS_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
        # graphics processors
        "GPU_DEVICE_ORDINAL",
    }
)  # fmt: skip
PASSED_BEGINNINGS = (
    "LC_", "XDG_",
    "CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_", "HIP_", "ROCR_", "ROCM_", "HSA_", "MIOPEN_", "ONEAPI_", "ZE_", "SYCL_",
    "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_", "OMP_", "KMP_", "MKL_", "OPENBLAS_",
)  # fmt: skip
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|(?:^|_)(?:API_?)?KEYS?(?:_|$)")


def child_environment(environ: Mapping[str, str], passed: Collection[str] = ()) -> dict[str, str]:
    """Return the variables for a program that we start.

    Parameters
    ----------
    environ : mapping
        The user's variables.
    passed : collection of str
        Names to pass beside those of the list, upper and lower case being the same.

    Examples
    --------
    >>> child_environment({"PATH": "/bin", "HF_TOKEN": "hf_x", "NVIDIA_API_KEY": "x", "https_proxy": "http://p"})
    {'PATH': '/bin', 'https_proxy': 'http://p'}
    >>> child_environment({"MY_KEY": "x"}, ["MY_KEY"])
    {'MY_KEY': 'x'}
    """
    named = {name.upper() for name in passed}
    return {name: value for name, value in environ.items() if name.upper() in named or _passes(name.upper())}


def secret_values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of variables that are named like secrets, to be masked wherever they turn up.

    Short values are left out: masking every "1" or "true" would garble a text.

    >>> secret_values({"HF_TOKEN": "hf_x12345", "MY_KEY": "true", "PATH": "/usr/local/bin"})
    ('hf_x12345',)
    """
    return tuple(value for name, value in environ.items() if len(value) >= 8 and is_secret_name(name))


def is_secret_name(name: str) -> bool:
    """Whether a variable, or a key, of this name holds a secret.

    >>> [is_secret_name(name) for name in ("hf_token", "MY_API_KEY", "keyboard")]
    [True, True, False]
    """
    return _SECRET.search(name.upper()) is not None


def _passes(name: str) -> bool:
    return name in PASSED or (name.startswith(PASSED_BEGINNINGS) and not is_secret_name(name))
