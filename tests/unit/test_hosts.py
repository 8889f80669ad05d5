"""Which hosts a plan contacts: for each kind of step, by each kind of address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.comfyui.release_models import ComfyRelease
from provisioner.core.models import (
    Download,
    FetchFile,
    FilesPlan,
    HubCacheTarget,
    PlaceFile,
    RecordReceipt,
    Registry,
    Source,
    Target,
    UrlFile,
)
from provisioner.oci.reference import parse_reference, parse_repository
from provisioner.plan.plan_hosts import Addresses, hosts_of
from provisioner.plan.steps import (
    GenerateImage,
    GetComfyUI,
    InstallPackages,
    KeepEnvironment,
    MakeEnvironment,
    Plan,
    PlanHosts,
    RepairEnvironment,
    StartComfyUI,
    Step,
    UpdateComfyUI,
)
from provisioner.torch.builds import TorchBuild, TorchChoice
from provisioner.ui.host_list import hosts_blocks
from provisioner.ui.text import laid_out
from tests.support.builders import artifact, artifact_set, comfy_file, comfy_target, hub_file, local_copy, manifest

HUB, PYPI = "https://huggingface.co", "https://pypi.org/simple"
DOWNLOAD = Download(fetched_bytes=1, disk_bytes=1)
RELEASE = ComfyRelease(version="0.33.0", commit="c" * 40)
HERE = Path("/comfy/.venv")
Making = type[MakeEnvironment] | type[RepairEnvironment]


def plan_of(*steps: Step, target: Target | None = None) -> Plan:
    files = FilesPlan(manifest=manifest(), set=artifact_set(), target=target or comfy_target(), steps=(), checks=())
    return Plan(files=files, steps=steps)


def found(
    *steps: Step,
    endpoint: str = HUB,
    indexes: Sequence[str] = (PYPI,),
    has_git: bool = True,
    proxies: dict[str, str] | None = None,
    target: Target | None = None,
    registry: Registry | None = None,
    bundle: str | None = None,
) -> PlanHosts:
    def proxy_for(url: str) -> str | None:
        return next((proxy for part, proxy in (proxies or {}).items() if part in url), None)

    addresses = Addresses(
        endpoint=endpoint,
        indexes=indexes,
        has_git=has_git,
        registry=registry,
        bundle=bundle,
    )
    return hosts_of(plan_of(*steps, target=target), addresses, proxy_for)


def rows(hosts: PlanHosts) -> list[tuple[str, int, str, str]]:
    return [(use.host, use.port, use.what, use.when) for use in hosts.uses]


def environment(index_url: str | None, kind: Making = MakeEnvironment) -> Step:
    build = TorchBuild(torch_backend="cu130", index_url=index_url, local_tag="cu130", sets=())
    choice = TorchChoice(build=build, reasons=("it fits",), runner_up=None)
    return kind(where=HERE, choice=choice, app="comfyui", reason="there is none", download=DOWNLOAD)


def packages(*lines: str) -> InstallPackages:
    return InstallPackages(where=HERE, app="comfyui", tree=None, lines=lines, reason="not met", download=DOWNLOAD)


def fetch(*sources: Source) -> FetchFile:
    wanted = artifact(sources=sources)
    return FetchFile(artifact=wanted, destination=comfy_file(wanted), reason="missing")


def test_a_plan_without_work_contacts_nobody() -> None:
    kept = KeepEnvironment(where=HERE, reason="nothing changed")
    assert rows(found(kept, StartComfyUI(folder=HERE, reason="for the image"))) == []
    assert "no host is contacted" in shown(found())


def test_a_model_file_comes_from_the_hub_and_where_it_sends_it() -> None:
    hosts = found(fetch(hub_file()))
    assert rows(hosts)[0] == ("huggingface.co", 443, "model files", "always")
    assert {host for host, *_, when in rows(hosts) if when == "redirect"} == {
        *("*.hf.co", "*.xethub.hf.co", "*.huggingface.co")
    }
    assert hosts.open_ended == ()


def test_a_second_source_is_asked_only_where_the_first_one_fails() -> None:
    hosts = found(fetch(UrlFile(url="https://a.example/x"), UrlFile(url="https://b.example:8443/x")))
    assert rows(hosts) == [
        ("a.example", 443, "model files", "always"),
        ("b.example", 8443, "model files", "if-needed"),
    ]
    assert hosts.open_ended == ("a.example", "b.example")


def test_a_registry_is_named_and_what_is_asked_without_it() -> None:
    hosts = found(fetch(parse_reference("oci://registry.example:5000/models:v1"), hub_file()))
    assert rows(hosts)[0] == ("registry.example", 5000, "model files", "always")
    assert ("huggingface.co", 443, "model files", "if-needed") in rows(hosts)
    assert hosts.open_ended == ("registry.example",)
    assert "may also name a token service" in " ".join(shown(hosts).split())
    first = Registry(repository=parse_repository("docker.io/somebody/models"))
    hosts = found(fetch(hub_file()), registry=first)
    assert rows(hosts)[0] == ("registry-1.docker.io", 443, "model files", "always")
    assert "auth.docker.io" in {host for host, *_, when in rows(hosts) if when == "redirect"}
    assert ("huggingface.co", 443, "model files", "if-needed") in rows(hosts)
    assert "huggingface.co" not in str(rows(found(fetch(hub_file()), registry=replace(first, is_only=True))))


def test_a_copy_that_turns_out_wrong_is_fetched_and_a_move_never_is() -> None:
    wanted = artifact(sources=(hub_file(),))
    copy = local_copy(wanted, Path("/elsewhere"))
    place = PlaceFile(artifact=wanted, destination=comfy_file(wanted), reason="missing", copy=copy)
    record = RecordReceipt(artifact=wanted, destination=comfy_file(wanted), reason="no receipt")
    assert {when for *_, when in rows(found(place))} == {"if-needed"}
    assert rows(found(record)) == []


def test_a_cache_of_a_strangers_manifest_is_confirmed_by_the_hub() -> None:
    wanted = artifact(sources=(hub_file(),))
    record = RecordReceipt(artifact=wanted, destination=comfy_file(wanted), reason="no receipt")
    cache = HubCacheTarget(cache=Path("/cache"), is_shipped=False)
    assert rows(found(record, target=cache))[0] == ("huggingface.co", 443, "model files", "always")
    assert rows(found(record, target=replace(cache, is_shipped=True))) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://github.com/Comfy-Org/ComfyUI", ("github.com", 443)),
        ("https://git.example:8443/x.git", ("git.example", 8443)),
        ("git://git.example/x", ("git.example", 9418)),
        ("ssh://me@git.example/x", ("git.example", 22)),
        ("git@Git.example:comfy/x.git", ("git.example", 22)),
        ("http://127.0.0.1:8000/x.zip", ("127.0.0.1", 8000)),
        ("/srv/ComfyUI", None),
        ("file:///srv/ComfyUI", None),
        ("C:\\ComfyUI", None),
        ("..\\ComfyUI", None),
        ("ComfyUI", None),
    ],
)
def test_the_source_of_comfyui_may_be_any_kind_of_address(source: str, expected: tuple[str, int] | None) -> None:
    for kind in (GetComfyUI, UpdateComfyUI):
        step = kind(folder=HERE, release=RELEASE, source=source, reason="there is none", download=DOWNLOAD)
        assert rows(found(step)) == ([] if expected is None else [(*expected, "ComfyUI", "always")])


def test_without_git_github_sends_the_archive_from_another_host() -> None:
    step = GetComfyUI(
        folder=HERE, release=RELEASE, source="https://github.com/x/y", reason="there is none", download=DOWNLOAD
    )
    assert [host for host, *_ in rows(found(step, has_git=False))] == ["github.com", "codeload.github.com"]


@pytest.mark.parametrize("kind", [MakeEnvironment, RepairEnvironment])
def test_torch_comes_from_its_index_and_what_that_lacks_from_another(
    kind: type[MakeEnvironment] | type[RepairEnvironment],
) -> None:
    hosts = found(environment("https://download.pytorch.org/whl/cu130", kind), indexes=["https://nexus.example/simple"])
    assert rows(hosts) == [
        ("download.pytorch.org", 443, "torch", "always"),
        ("download-r2.pytorch.org", 443, "torch", "redirect"),
        ("files.pythonhosted.org", 443, "torch", "redirect"),
        ("nexus.example", 443, "packages of Python", "if-needed"),
    ]
    assert hosts.open_ended == ("nexus.example",)
    default = found(environment(None, kind))
    assert ("pypi.org", 443, "torch", "always") in rows(default)


def test_packages_come_from_every_index_and_from_where_a_requirement_says() -> None:
    step = packages("einops>=0.8", "x @ https://wheels.example/x.whl", "y @ git+https://git.example/y")
    hosts = found(step, indexes=[PYPI, "https://extra.example/simple", "/srv/wheels", "file:///srv/more"])
    sure = [host for host, _, _, when in rows(hosts) if when == "always"]
    assert sure == ["pypi.org", "extra.example", "wheels.example", "git.example"]
    assert ("files.pythonhosted.org", 443, "packages of Python", "redirect") in rows(hosts)


def test_a_host_that_is_needed_for_sure_is_told_as_that_once() -> None:
    hosts = found(environment("https://torch.example/whl"), packages("einops"))
    assert [row for row in rows(hosts) if row[0] == "pypi.org"] == [("pypi.org", 443, "packages of Python", "always")]


def test_everything_of_a_bundle_comes_from_its_registry_but_the_test_image() -> None:
    image = GenerateImage(app="comfyui", reason="nothing was generated yet", server="http://lab.example:8188")
    steps = (environment("https://torch.example/whl"), packages("einops"), image)
    assert {(host, what) for host, _, what, _ in rows(found(*steps, bundle="https://registry.example:5000"))} == {
        ("registry.example", "torch"),
        ("registry.example", "packages of Python"),
        ("lab.example", "the test image"),
    }


def test_a_server_for_the_test_image_is_listed_and_one_of_our_own_is_not() -> None:
    image = GenerateImage(app="comfyui", reason="nothing was generated yet")
    assert rows(found(image)) == []
    assert rows(found(replace(image, server="http://lab.example:8188"))) == [
        ("lab.example", 8188, "the test image", "always")
    ]


def shown(hosts: PlanHosts) -> str:
    return "\n".join("".join(part.text for part in line) for line in laid_out(hosts_blocks(hosts), width=100))


def test_the_page_says_what_goes_through_which_proxy() -> None:
    steps = (fetch(hub_file()), packages("einops"))
    everything = shown(found(*steps, proxies={"": "http://proxy:3128"}))
    assert "All: through the proxy http://proxy:3128." in everything
    some = shown(found(*steps, proxies={"pypi.org": "http://proxy:3128"}))
    assert "pypi.org: through the proxy http://proxy:3128." in some
    assert "may send a download on" not in some
    other = shown(found(packages("x"), indexes=["https://nexus.example:8443/simple"]))
    assert "nexus.example:8443  packages of Python" in other
    assert "nexus.example may send a download on to another host" in other
