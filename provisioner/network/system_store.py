"""Connections that trust whom the operating system trusts."""

from __future__ import annotations

import ssl
from functools import cached_property
from typing import Any

import truststore
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from provisioner.network.deadline import DeadlineAdapter


class SystemStoreAdapter(DeadlineAdapter):
    """Checks certificates against the operating system's store, unless a file of certificates was named.

    Mozilla's list (certifi) counts beside it, as it does with pip: Windows fetches a root when it first needs it, where
    that is allowed, and a small Linux image has no store at all.  A context is of one adapter, so of one thread:
    truststore lets only one handshake at a time through each.
    """

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return _system_context()

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:  # noqa: ANN401
        """Add the context to what tells one pool of connections from another."""
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        if verify is True and host["scheme"] == "https":
            pool["ssl_context"] = self._context if cert is None else _system_context()  # a certificate stays in it
        return host, pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ANN401 - handed on
        """Name no file where the context knows whom to trust."""
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        if verify is True:
            conn.ca_certs = None

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:  # noqa: ANN401 - handed on
        """Trust the same for a proxy that is itself reached by TLS."""
        if proxy.lower().startswith("https:") and proxy not in self.proxy_manager:
            more["proxy_ssl_context"] = _system_context()
        return super().proxy_manager_for(proxy, **more)


def _system_context() -> ssl.SSLContext:
    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context
