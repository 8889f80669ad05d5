"""How a server is reached, where a person's settings say more than the environment variables do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How a server is reached; what is None is left to the environment variables."""

    user: tuple[str, str] | None = None  # name and password
    proxy: str | None = None
    certificates: Path | None = None  # the authorities to trust
    client_certificate: Path | None = None
    checks_certificate: bool = True
