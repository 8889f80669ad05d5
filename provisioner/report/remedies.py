"""What mends what was found: the one command, by the codes of the findings.

Knows which command can do what; looks at nothing and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from provisioner.core.models import Finding

_COMFYUI_CODES = frozenset({"comfyui-too-old", "comfyui-update-interrupted"})
# fmt: off
_ENVIRONMENT_CODES = (
    "constraints-", "environment-", "package-", "probe-", "python-", "torch-", "torchaudio-", "torchvision-",
    "uninstall-",
)
# fmt: on
_ENVIRONMENT_ALONE = frozenset({"building-interrupted", "gpu-without-code"})
_BY_HAND = frozenset(
    {"torch-twice", "driver-too-old", "driver-missing", "probe-no-device", "probe-wrong-numbers", "probe-other-device"}
)
"""Problems of the environment that making it anew does not mend; their own hint says what to do."""
_FILE_CODES = frozenset({"never-proven"})


def remedy_verb(findings: Iterable[Finding], *, files_are_wrong: bool = False) -> str | None:
    """Return the command that mends what does not hold, without its options; None where no command of ours does.

    Parameters
    ----------
    findings : iterable of Finding
        What was found; only problems count.
    files_are_wrong : bool
        Whether a file is not as the manifest asks, which a check says and no finding.

    Returns
    -------
    str or None
        ``repair`` as soon as files are concerned: only it reads every byte.  After it, looking again names what is
        left, one command at a time.

    Examples
    --------
    >>> remedy_verb([Finding(code="torch-replaced", severity="problem", message="")])
    'install --only environment'
    """
    problems = [finding for finding in findings if finding.severity == "problem"]
    codes = {finding.code for finding in problems} - _BY_HAND
    if files_are_wrong or codes & _FILE_CODES:
        return "repair"
    if any(_is_ours_to_update(finding) for finding in problems):
        return "install --update-comfyui"
    return "install --only environment" if any(map(_is_about_environment, codes)) else None


def _is_ours_to_update(finding: Finding) -> bool:
    """Whether the finding is about a ComfyUI that we can move: a portable build has its own updater, says its hint."""
    if finding.code not in _COMFYUI_CODES:
        return False
    return finding.code != "comfyui-too-old" or finding.hint is None or "--update-comfyui" in finding.hint


def _is_about_environment(code: str) -> bool:
    return code.startswith(_ENVIRONMENT_CODES) or code in _ENVIRONMENT_ALONE
