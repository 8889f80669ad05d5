"""The network, through requests: finding where a file's bytes are, and bringing them by ranges."""

from provisioner.adapters.http.engine import RangeFetcher
from provisioner.adapters.http.session import Credentials

__all__ = ["Credentials", "RangeFetcher"]
