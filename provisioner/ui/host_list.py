"""The text of the hosts that a plan contacts."""

from __future__ import annotations

from provisioner.core.units import listing
from provisioner.plan.steps import HostUse, HostWhen, PlanHosts
from provisioner.ui.text import BLANK, Block, Column, Grid, Para, Row, Span, span

_WHEN: dict[HostWhen, str] = {
    "always": "",
    "redirect": "where a download is sent on to",
    "if-needed": "only if something is missing elsewhere",
}


def hosts_blocks(hosts: PlanHosts) -> list[Block]:
    """Return a row for each host, and what is not known before it is asked."""
    if not hosts.uses:
        return [Para(line=span("Nothing has to be fetched: no host is contacted."))]
    blocks: list[Block] = [
        Para(line=span("Hosts that this run contacts", "title")),
        BLANK,
        Grid(columns=(Column(), Column(), Column(is_optional=True)), rows=tuple(map(_row, hosts.uses))),
        BLANK,
    ]
    direct = [use for use in hosts.uses if use.proxy is None]
    for proxy in dict.fromkeys(use.proxy for use in hosts.uses if use.proxy is not None):
        which = listing(list(dict.fromkeys(use.host for use in hosts.uses if use.proxy == proxy))) if direct else "All"
        blocks.append(Para(line=span(f"{which}: through the proxy {proxy}.")))
    if hosts.open_ended:
        words = f"{listing(list(hosts.open_ended))} may send a download on to another host, which only it knows"
        words += "; an OCI registry may also name a token service."
        blocks.append(Para(line=span(words)))
    blocks.append(Para(line=span("ComfyUI and its custom nodes decide by themselves whom they contact later.")))
    return blocks


def _row(use: HostUse) -> Row:
    port = "" if use.port == 443 else f":{use.port}"
    return Row(cells=(Span(f"{use.host}{port}"), Span(use.what), Span(_WHEN[use.when])))
