"""The one command that fixes what was found.

Knows which command of ours each remedy is; looks at nothing and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from provisioner.core.models import Finding, Remedy

_VERBS: Mapping[Remedy, str] = {
    "repair": "repair",
    "update-comfyui": "install --update-comfyui",
    "install": "install",
    "install-environment": "install --only environment",
}
"""The command of each remedy, without the options that name manifest and target; the first of several goes first."""


def remedy_verb(findings: Iterable[Finding], *, files_are_wrong: bool = False) -> str | None:
    """Return the command that fixes what was found, without its options; None where no command of ours does.

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
    >>> found = Finding(code="torch-replaced", severity="problem", message="", remedy="install-environment")
    >>> remedy_verb([found])
    'install --only environment'
    """
    wanted = {finding.remedy for finding in findings if finding.severity == "problem"}
    if files_are_wrong:
        wanted.add("repair")
    return next((verb for remedy, verb in _VERBS.items() if remedy in wanted), None)
