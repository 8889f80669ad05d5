"""Which hosts are on this computer or in a network of the user's own: a stranger's manifest may name neither."""

from __future__ import annotations

import re

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_PRIVATE_ENDINGS = (".internal", ".lan", ".local", ".localdomain", ".localhost", ".home.arpa", ".corp", ".home")
_NUMBERS = r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*"  # what the C library reads as an IPv4 address


def is_in_the_clear(url: str) -> bool:
    """Return whether an address is http on another computer than this one.

    >>> [is_in_the_clear(url) for url in ("HTTP://a.example/x", "https://a.example/x", "http://127.0.0.1:3", "/srv")]
    [True, False, False, False]
    """
    scheme, _, rest = url.partition("://")
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0].rpartition("@")[2].lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return scheme.lower() == "http" and name not in LOOPBACK


def is_private(host: str) -> bool:
    """Return whether a host is no public one: an address that is not routed, a name without a dot, a private ending.

    Names are not looked up.  An IPv4 address in another notation than the usual one counts as private.

    Parameters
    ----------
    host : str
        As `urllib.parse` returns it: in lower case, an IPv6 address without brackets.

    Examples
    --------
    >>> [is_private(host) for host in ("169.254.169.254", "fe80::1", "0x7f.1", "router", "printer.local")]
    [True, True, True, True, True]
    >>> [is_private(host) for host in ("huggingface.co", "1.1.1.1", "2606:4700::1111", "1e100.net")]
    [False, False, False, False]
    """
    host = host.rstrip(".")
    if ":" not in host and not re.fullmatch(_NUMBERS, host):
        return "." not in host or host.endswith(_PRIVATE_ENDINGS)
    import ipaddress  # takes 3 ms, and most hosts have names

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True
    plain = getattr(address, "ipv4_mapped", None) or address
    return bool(not plain.is_global or plain.is_multicast)
