"""``klein-setup plan --hosts``: where a run would look for what it fetches.  Nothing is contacted to find out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.plan.plan_hosts import Addresses, hosts_of
from provisioner.plan.steps import Plan, PlanHosts

if TYPE_CHECKING:
    from provisioner.commands.run import Run


def find_hosts(run: Run, plan: Plan) -> PlanHosts:
    """Return every host that applying a plan would contact; none with ``--offline`` and ``--from DIR``."""
    from provisioner.network.http_session import proxy_for

    session = run.session
    bundle = session.settings.bundle
    if session.is_offline or (bundle is not None and bundle.is_here):
        return PlanHosts(uses=(), open_ended=())
    indexes = session.environments.package_indexes()
    addresses = Addresses(
        endpoint=session.endpoint,
        indexes=indexes,
        has_git=session.checkouts.has_git(),
        registry=session.settings.registry,
        bundle=None if bundle is None else bundle.registry.repository.base,
    )
    return hosts_of(plan, addresses, proxy_for)
