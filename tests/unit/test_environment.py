"""What an environment's state means, what pip and uv are told, and how a folder takes another's name."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from provisioner.core.errors import (
    CommandError,
    EntryNotFoundError,
    FileInUseError,
    HashMismatchError,
    InsufficientSpaceError,
    IntegrityError,
    KleinError,
    NotTheFileError,
    NotWritableError,
    OfflineError,
    RateLimitedError,
    ServerError,
    StorageError,
    UnauthorizedError,
    UnreachableError,
    UsageError,
)
from provisioner.core.models import Gpu, Machine
from provisioner.core.route import Route
from provisioner.environment.build_context import only_news
from provisioner.environment.installer import (
    Wheel,
    check_indexes,
    check_wheels,
    constraint_variables,
    explain_failure,
    is_gap,
    links_page,
    offline_error,
    page_failures,
    parse_report,
    route_to,
)
from provisioner.environment.pip_settings import (
    installer_environment,
    parse_pip_settings,
    settings_in,
    without_indexes,
    without_network,
)
from provisioner.environment.state import (
    Distribution,
    EnvironmentReceipt,
    Observation,
    ProbeAnswer,
    ProbeDevice,
    PythonFacts,
    SecondTorch,
    complaint_about_python,
    complaints_about_tags,
    constraints_text,
    cuda_of,
    drift,
    judge_probe,
    parse_probe,
    parse_receipt,
    receipt_text,
    serves,
    visible_devices,
)
from provisioner.environment.swap import disk_error, relocated, staging_names
from provisioner.torch.builds import TorchBuild, TorchSet

WHERE = Path("/comfy/.venv")
WHEEL_WITHOUT = Wheel(name="torch", version="2.14.1", url="https://whl.example/x.whl", sha256=None)
SET = TorchSet(torch="2.14.1", torchvision="0.29.1", torchaudio="2.11.0")
BUILD = TorchBuild(torch_backend="cu130", index_url="https://x.example/cu130", local_tag="cu130", sets=(SET,))
PYTHON = PythonFacts(path=WHERE / "bin" / "python", version="3.11.7", prefix=WHERE, base_prefix=Path("/usr"))
LINES = ("torch==2.14.1+cu130", "torchvision==0.29.1+cu130", "torchaudio==2.11.0+cu130")
DEVICE = ProbeDevice(index=0, kind="cuda", name="RTX 4090", uuid="aa", capability=(8, 9), checks=("float32",))
ANSWER = ProbeAnswer(
    ok=True,
    packages=(("torch", "2.14.1+cu130"), ("torchvision", "0.29.1+cu130"), ("torchaudio", "2.11.0+cu130")),
    cuda="13.0",
    cudnn=91900,
    arch_list=("sm_75", "sm_86", "sm_90", "sm_120"),
    devices=(DEVICE,),
    python="3.11.7",
    seconds=1.5,
)
RECEIPT = EnvironmentReceipt(
    build_id="1-2",
    made_at="2026-11-23T00:00:00+00:00",
    installer="pip",
    python_version="3.11.7",
    python_home="/usr",
    torch_backend="cu130",
    index_url="https://x.example/cu130",
    local_tag="cu130",
    set=SET,
    versions=(("torch", "2.14.1+cu130"), ("torchvision", "0.29.1+cu130"), ("torchaudio", "2.11.0+cu130")),
    constraints=LINES,
    driver_version="580.95.05",
    gpus=("aa",),
    probe=ANSWER,
)


def installed(name: str, version: str, built: str | None = None) -> Distribution:
    return Distribution(name=name, version=version, location=WHERE / "lib", built_version=built)


SOUND = Observation(
    where=WHERE,
    is_there=True,
    python=PYTHON,
    distributions=tuple(installed(name, version) for name, version in RECEIPT.versions),
    constraints=LINES,
    receipt=RECEIPT,
)


def with_version(name: str, version: str | None, built: str | None = None) -> Observation:
    kept = tuple(each for each in SOUND.distributions if each.name != name)
    return replace(SOUND, distributions=kept if version is None else (*kept, installed(name, version, built)))


def gpu(capability: tuple[int, int] | None = (8, 9), uuid: str = "GPU-AA") -> Gpu:
    return Gpu(vendor="nvidia", name="RTX", index=0, uuid=uuid, compute_capability=capability)


def machine(driver: str | None = "580.95.05", *gpus: Gpu, os: str = "linux", is_wsl: bool = False) -> Machine:
    return Machine(
        os="windows" if os == "windows" else "linux",
        os_release="",
        is_wsl=is_wsl,
        architecture="x86_64",
        libc=None,
        python_version="3.11.7",
        gpus=gpus or (gpu(),),
        driver_version=driver,
    )


# --- drift -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"index-url": "http://me:secret9@mirror.example/simple"},
        {"extra-index-url": "https://a.example/simple http://mirror.example/simple"},
        {"find-links": "http://mirror.example/wheels /srv/wheels"},
    ],
)
def test_an_index_that_others_on_the_network_can_change_is_refused(settings: dict[str, str]) -> None:
    (name,) = settings
    with pytest.raises(UsageError, match=f"{name}.*http://mirror.example") as caught:
        check_indexes(settings)
    assert "secret9" not in str(caught.value)
    with pytest.raises(UsageError):
        check_indexes(settings_in({f"PIP_{name.upper().replace('-', '_')}": settings[name], "PIP_PROXY": "http://p"}))


def test_encrypted_and_local_indexes_are_left_alone() -> None:
    check_indexes({"index-url": "https://me:x@mirror.example", "find-links": "/srv http://127.0.0.1:3 http://[::1]/x"})
    check_indexes({"proxy": "http://proxy:3128"})


@pytest.mark.parametrize("scheme", ["https://whl.example", "http://127.0.0.1:3", "HTTP://whl.example"])
def test_a_wheel_without_a_digest_is_refused(scheme: str) -> None:
    bare = replace(WHEEL_WITHOUT, url=f"{scheme.replace('//', '//me:secret@')}/x.whl?Signature=secret")
    with pytest.raises(IntegrityError, match="no SHA-256 for torch") as caught:
        check_wheels([bare])
    assert "secret" not in str(caught.value)
    with pytest.raises(IntegrityError, match="and 2 other files"):
        check_wheels([bare, bare, bare])


def test_a_page_of_links_names_each_file_with_its_digest_and_holds_nothing_else() -> None:
    hostile = replace(WHEEL_WITHOUT, url='file:///a%2Bb/x&y"><a href=.whl', sha256="0" * 64)
    page = links_page([hostile])
    assert page.count("<a ") == 1
    assert f'href="file:///a%2Bb/x&amp;y&quot;&gt;&lt;a href=.whl#sha256={"0" * 64}"' in page
    assert ">x&amp;y&quot;&gt;&lt;a href=.whl</a>" in page


@pytest.mark.parametrize(
    ("url", "is_wheel", "is_online"),
    [
        ("HTTPS://whl.example/a-1-py3-none-any.whl?s=1", True, True),
        ("http://whl.example/a-1.tar.gz", False, True),
        ("file:///srv/a-1-py3-none-any.whl", True, False),
    ],
)
def test_a_file_says_what_it_is_and_where(url: str, is_wheel: bool, is_online: bool) -> None:
    wheel = replace(WHEEL_WITHOUT, url=url)
    assert (wheel.is_wheel, wheel.is_online) == (is_wheel, is_online)


def test_a_wheel_with_a_digest_or_on_this_disk_is_not() -> None:
    check_wheels([replace(WHEEL_WITHOUT, sha256="0" * 64), replace(WHEEL_WITHOUT, url="file:///x.whl")])


def test_an_environment_as_it_was_made_does_not_drift() -> None:
    assert drift(RECEIPT, SOUND, machine()) == ()


@pytest.mark.parametrize(
    ("observation", "codes"),
    [
        (with_version("torch", "2.15.0", "2.15.0+cu132"),
         ["torch-replaced", "torchvision-of-another-build", "torchaudio-of-another-build"]),
        (with_version("torch", None), ["torch-missing"]),
        (with_version("torchaudio", None), ["torchaudio-missing"]),
        (with_version("torchaudio", "2.11.0+cu132"), ["torchaudio-replaced", "torchaudio-of-another-build"]),
        (with_version("torchaudio", "2.11.0+cpu"), ["torchaudio-replaced"]),
        (replace(SOUND, constraints=None), ["constraints-changed"]),
        (replace(SOUND, constraints=LINES[1:]), ["constraints-changed"]),
        (replace(SOUND, constraints=(*LINES, "numpy<2")), ["constraints-changed"]),
        (replace(SOUND, leftovers=(WHERE / "lib" / "~orch",)), ["uninstall-interrupted"]),
        (replace(SOUND, second_torches=(SecondTorch(path=Path("/x/torch"), why="there"),)), ["torch-twice"]),
        (replace(SOUND, python=replace(PYTHON, version="3.11.9")), ["python-changed"]),
        (replace(SOUND, python=replace(PYTHON, version="3.12.1")), ["python-changed"]),
        (replace(SOUND, broken="its Python is gone.", python=None), ["environment-broken"]),
        (Observation(where=WHERE, is_there=False), ["environment-missing"]),
        (Observation(where=WHERE, is_there=False, interrupted="It stopped."), ["environment-interrupted"]),
        (replace(SOUND, interrupted="A building was interrupted."), ["building-interrupted"]),
    ],
)  # fmt: skip
def test_what_changed_has_a_name(observation: Observation, codes: list[str]) -> None:
    assert [finding.code for finding in drift(RECEIPT, observation, machine())] == codes


def test_a_changed_minor_version_of_python_is_a_problem_and_a_patch_is_not() -> None:
    severities = [
        drift(RECEIPT, replace(SOUND, python=replace(PYTHON, version=version)), None)[0].severity
        for version in ("3.11.9", "3.12.0")
    ]
    assert severities == ["warning", "problem"]


def test_a_second_torch_is_a_problem_only_where_it_comes_first() -> None:
    second = SecondTorch(path=Path("/x/torch"), why="there")
    first = replace(second, is_first=True)
    found = drift(RECEIPT, replace(SOUND, second_torches=(second, first)), None)
    assert [(finding.severity, "is imported" in finding.message) for finding in found] == [
        ("problem", True),
        ("warning", False),
    ]


@pytest.mark.parametrize(
    ("seen", "codes"),
    [
        (machine("579.99"), ["driver-too-old"]),
        (machine("580"), ["driver-changed"]),
        (machine("595.58.03"), ["driver-changed"]),
        (machine(None), ["driver-missing"]),
        (machine("580.95.05", gpu(None)), []),
        (machine("580.95.05", gpu((6, 1))), ["gpu-without-code"]),
        (machine("580.95.05", gpu(uuid="GPU-BB")), ["gpu-changed"]),
        (machine("580.95.05", gpu(), gpu((12, 1), "GPU-BB")), ["gpu-changed"]),
    ],
)
def test_a_changed_machine_has_a_name(seen: Machine, codes: list[str]) -> None:
    assert [finding.code for finding in drift(RECEIPT, SOUND, seen)] == codes


@pytest.mark.parametrize(
    ("tag", "driver", "system", "is_wsl", "is_too_old"),
    [
        ("cu126", "525.60.12", "linux", False, True),
        ("cu126", "525.60.13", "linux", False, False),
        ("cu126", "525.60.13", "windows", False, True),
        ("cu126", "525.60.13", "linux", True, True),
        ("cu126", "528.33", "windows", False, False),
        ("cu118", "450.80.02", "linux", False, False),
        ("cu118", "450.36.06", "linux", False, True),
        ("cu132", "580.65.06", "linux", False, False),
    ],
)
def test_the_driver_floor_is_that_of_the_cuda_major(
    tag: str, driver: str, system: str, is_wsl: bool, is_too_old: bool
) -> None:
    receipt = replace(RECEIPT, local_tag=tag, torch_backend=tag, probe=None, driver_version=driver)
    seen = machine(driver, os=system, is_wsl=is_wsl)
    found = [finding for finding in drift(receipt, Observation(where=WHERE, is_there=False), seen)]
    assert ("driver-too-old" in [finding.code for finding in found]) == is_too_old
    for finding in found:
        if finding.code == "driver-too-old":
            assert driver in finding.message
            assert "or newer" in finding.message


def test_a_cpu_build_does_not_ask_for_a_driver() -> None:
    receipt = replace(RECEIPT, torch_backend="cpu", local_tag="cpu", probe=replace(ANSWER, cuda=None))
    seen = replace(
        SOUND,
        distributions=tuple(installed(name, version.replace("cu130", "cpu")) for name, version in RECEIPT.versions),
    )
    receipt = replace(receipt, versions=tuple((each.name, each.version) for each in seen.distributions))
    assert drift(receipt, seen, machine(None)) == ()
    assert cuda_of(receipt) is None


@pytest.mark.parametrize(
    ("cuda", "tag", "expected"),
    [("13.0", "cu126", (13, 0)), ("13", "cu126", (13, 0)), ("odd", "cu126", (12, 6)), (None, "cu126", (12, 6))],
)
def test_the_cuda_of_a_build_is_what_torch_said_else_what_its_tag_says(
    cuda: str | None, tag: str, expected: tuple[int, int]
) -> None:
    assert cuda_of(replace(RECEIPT, local_tag=tag, probe=replace(ANSWER, cuda=cuda))) == expected


def test_a_driver_that_was_never_seen_is_not_missed() -> None:
    receipt = replace(RECEIPT, driver_version=None)
    assert drift(receipt, SOUND, machine(None)) == ()


@pytest.mark.parametrize(
    ("arch", "capability", "cuda", "runs"),
    [
        ("sm_86", (8, 9), (13, 0), True),  # the same major, an older minor
        ("sm_90", (8, 9), (13, 0), False),
        ("sm_86", (9, 0), (13, 0), False),
        ("compute_90", (12, 0), (13, 0), True),  # PTX is compiled for any newer one
        ("compute_120", (9, 0), (13, 0), False),
        ("sm_90a", (9, 0), (13, 0), True),  # "a": this one only
        ("sm_100a", (10, 3), (13, 0), False),
        ("sm_80", (8, 7), (13, 0), False),  # Orin, up to CUDA 13.1
        ("sm_80", (8, 7), (13, 2), True),
        ("sm_101", (11, 0), (12, 9), True),  # Thor, renamed by CUDA 13
        ("sm_110", (11, 0), (13, 0), True),
        ("sm_100", (11, 0), (13, 0), False),
        ("gfx1100", (8, 9), (13, 0), False),
    ],
)
def test_which_code_runs_on_which_device(
    arch: str, capability: tuple[int, int], cuda: tuple[int, int], runs: bool
) -> None:
    assert serves(arch, capability, cuda) is runs


def test_an_environment_of_somebody_elses_is_judged_by_its_own_coherence() -> None:
    assert drift(None, SOUND, machine()) == ()
    assert [each.code for each in drift(None, with_version("torch", None), None)] == ["torch-missing"]
    mixed = with_version("torchaudio", "2.11.0", "2.11.0+cu132")
    assert [each.code for each in drift(None, mixed, None)] == ["torchaudio-of-another-build"]


def test_a_tag_that_only_version_py_tells_is_compared_too() -> None:
    receipt = replace(RECEIPT, versions=(("torch", "2.14.1"),))
    seen = replace(SOUND, distributions=(installed("torch", "2.14.1", "2.14.1+cpu"),))
    assert [each.code for each in drift(receipt, seen, None)] == ["torch-tag"]


# --- receipt and probe -------------------------------------------------------------------------


@pytest.mark.parametrize("receipt", [RECEIPT, replace(RECEIPT, probe=None, local_tag=None, index_url=None)])
def test_a_receipt_is_read_as_it_was_written(receipt: EnvironmentReceipt) -> None:
    assert parse_receipt(receipt_text(receipt)) == receipt


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"schema_version": 2}', receipt_text(RECEIPT)[:-40],
     receipt_text(RECEIPT).replace('"torch_backend"', '"other"')],
)  # fmt: skip
def test_a_damaged_receipt_is_no_receipt(text: str) -> None:
    assert parse_receipt(text) is None


@pytest.mark.parametrize("text", ["", "\n", "hello", "[]", '{"ok": true}', '{"ok": true, "failures": 3}'])
def test_what_is_no_answer_of_the_probe_is_none(text: str) -> None:
    assert parse_probe(text) is None


def test_the_answer_is_the_last_line() -> None:
    answer = parse_probe('warning: something\n{"ok": true, "failures": []}\n\n')
    assert answer is not None
    assert answer.ok


def test_every_failure_of_the_probe_is_a_problem() -> None:
    answer = ProbeAnswer(ok=False, failures=(("no-kernel", "No code."), ("compute", "It failed.")))
    found = judge_probe(answer, BUILD, None)
    assert [(each.code, each.severity) for each in found] == [
        ("probe-no-kernel", "problem"),
        ("probe-compute", "problem"),
    ]


def test_a_problem_of_the_environment_is_fixed_by_installing_it_and_the_rest_by_a_person() -> None:
    first = SecondTorch(path=Path("/x/torch"), why="there", is_first=True)
    failures = (("no-kernel", "No code."), ("no-device", "None."), ("wrong-numbers", "2 is 3."))
    found = [
        *drift(RECEIPT, replace(with_version("torch", None), second_torches=(first,)), machine("579.99")),
        *drift(RECEIPT, replace(SOUND, broken="its Python is gone."), machine(None)),
        *judge_probe(ProbeAnswer(ok=False, failures=failures), BUILD, None),
    ]
    assert {each.code: each.remedy for each in found} == {
        "torch-missing": "install-environment",
        "environment-broken": "install-environment",
        "probe-no-kernel": "install-environment",
        "torch-twice": "by-hand",
        "driver-too-old": "by-hand",
        "driver-missing": "by-hand",
        "probe-no-device": "by-hand",
        "probe-wrong-numbers": "by-hand",
    }


def test_a_failure_without_a_reason_is_a_problem() -> None:
    assert [each.code for each in judge_probe(ProbeAnswer(ok=False), BUILD, None)] == ["probe-failed"]


@pytest.mark.parametrize(
    ("tag", "packages", "said"),
    [
        ("cu130", ANSWER.packages, None),
        ("cu130", (("torch", "2.14.1+cu130"), ("torchaudio", "2.11.0+cpu")), "torchaudio 2.11.0+cpu"),
        (None, (("torch", "2.14.1"), ("torchaudio", "2.11.0+cpu")), None),  # a build without a tag promises none
    ],
)
def test_a_package_that_is_imported_from_another_build_is_named(
    tag: str | None, packages: tuple[tuple[str, str], ...], said: str | None
) -> None:
    found = judge_probe(replace(ANSWER, packages=packages), replace(BUILD, local_tag=tag), None)
    assert [(each.code, str(said) in each.message) for each in found] == ([("probe-tag", True)] if said else [])


def test_old_cards_and_a_new_cudnn_do_not_go_together() -> None:
    old = replace(ANSWER, devices=(replace(DEVICE, capability=(7, 0)),))
    assert [each.code for each in judge_probe(old, BUILD, None)] == ["probe-cudnn"]
    assert judge_probe(replace(old, cudnn=91002), BUILD, None) == ()


def test_devices_are_not_compared_where_nvml_named_none() -> None:
    assert judge_probe(ANSWER, BUILD, replace(machine(), gpus=())) == ()
    assert judge_probe(replace(ANSWER, devices=(replace(DEVICE, uuid=None),)), BUILD, machine()) == ()


# --- tags, constraints, Pythons ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "tag", "says"),
    [
        ({}, "cu130", None),
        ({}, None, None),
        ({"torchaudio": "2.11.0+cpu"}, "cu130", "torchaudio 2.11.0+cpu was promised for cu130"),
        ({"torch": "2.14.1"}, "cu130", "metadata says no tag"),
        ({"torch": "2.15.0+cu130"}, "cu130", "torch is 2.15.0+cu130 by its metadata, where 2.14.1"),
        ({"torchvision": None}, "cu130", "torchvision 0.29.1 is not among"),
        ({"torchaudio": "2.11.0+cu132"}, None, "of different builds"),
    ],
)
def test_tags_are_compared_with_what_was_promised(
    changes: dict[str, str | None], tag: str | None, says: str | None
) -> None:
    resolved = {name: version for name, version in {**dict(RECEIPT.versions), **changes}.items() if version}
    complaints = complaints_about_tags(resolved, SET, tag)
    assert (complaints == ()) if says is None else says in complaints[0]


def test_a_set_without_torchaudio_asks_for_none() -> None:
    releases = replace(SET, torchaudio=None)
    assert complaints_about_tags({"torch": "2.14.1+cu132", "torchvision": "0.29.1+cu132"}, releases, "cu132") == ()
    assert "torchaudio" not in constraints_text(releases, "cu132")


def test_constraints_hold_what_torch_cannot_do_without() -> None:
    others = [("sympy", "1.14"), ("triton", "3.6.0"), ("nvidia-cudnn-cu13", "9.19"), ("cuda-bindings", "13.0")]
    assert constraints_text(SET, "cu130", others).splitlines() == [
        *LINES,
        "cuda-bindings==13.0",
        "nvidia-cudnn-cu13==9.19",
        "triton==3.6.0",
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"version": "3.9.18"}, "wheels for 3.10 and 3.11"),
        ({"version": "3.15.0a1"}, "wheels for 3.10 and 3.11"),
        ({"implementation": "pypy"}, "CPython only"),
        ({"bits": 32}, "32-bit"),
        ({"is_free_threaded": True}, "free-threaded"),
        ({"can_make_environments": False}, "without venv"),
        ({"is_free_threaded": True, "version": "3.14.1"}, "--python names it"),
        ({"is_free_threaded": True, "version": "3.11.1", "can_make_environments": False}, "free-threaded"),
    ],
)
def test_a_python_that_does_not_fit_is_told_why(changes: dict[str, object], says: str | None) -> None:
    complaint = complaint_about_python(replace(PYTHON, **changes), ("3.10", "3.11"))  # type: ignore[arg-type]
    assert complaint is None if says is None else says in (complaint or "")


def test_a_free_threaded_python_fits_where_it_is_named_or_listed() -> None:
    free = replace(PYTHON, is_free_threaded=True, version="3.14.1")
    assert (free.release, replace(free, is_free_threaded=False).release) == ("3.14t", "3.14")
    assert complaint_about_python(free, ()) is None
    assert complaint_about_python(free, ("3.14t",)) is None
    assert complaint_about_python(free, ("3.14",)) is not None
    without = replace(free, can_make_environments=False)
    assert "without venv" in (complaint_about_python(without, ("3.14t",)) or "")


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([("rocm", True)], {}),
        ([("rocm", False), ("rocm", True)], {"HIP_VISIBLE_DEVICES": "1"}),
        ([("rocm", True), ("rocm", False), ("rocm", True)], {"HIP_VISIBLE_DEVICES": "0,2"}),
        ([("rocm", False), ("rocm", False)], {}),
        ([("cuda", True), ("cuda", False)], {}),
    ],
)
def test_gpus_that_did_not_compute_are_hidden(devices: list[tuple[str, bool]], expected: dict[str, str]) -> None:
    found = tuple(
        ProbeDevice(index=at, kind=kind, name=str(at), checks=("float32",) if works else ())
        for at, (kind, works) in enumerate(devices)
    )
    assert visible_devices(replace(RECEIPT, probe=replace(ANSWER, devices=found))) == expected
    assert visible_devices(None) == visible_devices(replace(RECEIPT, probe=None)) == {}


# --- pip and uv --------------------------------------------------------------------------------

LISTED = """
global.cert='/etc/ssl/own.pem'
global.index-url='https://file.example/simple'
install.index-url='https://install.example/simple'
:env:.index-url='https://env.example/simple'
:env:.extra-index-url='https://a.example https://b.example'
global.target='/elsewhere'
install.no-deps='true'
global.constraint='/x.txt'
:env:.no-binary=':all:'
global.proxy="http://o'brien:3128"
site.proxy='http://other:1'
"""


def test_only_the_way_to_the_network_is_kept_of_a_persons_settings() -> None:
    assert parse_pip_settings(LISTED, with_indexes=False) == {
        "cert": "/etc/ssl/own.pem",
        "proxy": "http://o'brien:3128",
    }


def test_a_mirror_is_kept_for_other_packages_and_dropped_for_torch() -> None:
    settings = parse_pip_settings(LISTED, with_indexes=True)
    assert settings["index-url"] == "https://env.example/simple"
    assert settings["extra-index-url"] == "https://a.example https://b.example"
    assert without_indexes(settings) == parse_pip_settings(LISTED, with_indexes=False)


def test_an_installer_sees_no_setting_that_leads_elsewhere() -> None:
    hostile = {name: "x" for name in ("PIP_TARGET", "pip_user", "UV_INDEX_URL", "PYTHONPATH", "VIRTUAL_ENV")}
    found = installer_environment(
        {"HOME": "/home/me", "HTTPS_PROXY": "p", **hostile}, {"index-url": "https://x"}, temporary=Path("/work/tmp")
    )
    assert not set(hostile) & set(found)
    assert found["HTTPS_PROXY"] == "p"
    assert found["PIP_INDEX_URL"] == "https://x"
    assert found["PIP_CONFIG_FILE"] == "/dev/null"
    assert {found[name] for name in ("TMPDIR", "TEMP", "TMP")} == {str(Path("/work/tmp"))}


def test_an_application_is_held_through_both_installers() -> None:
    assert set(constraint_variables(Path("/comfy/constraints.txt"))) == {"PIP_CONSTRAINT", "UV_CONSTRAINT"}


def test_a_report_is_read_with_either_kind_of_hash() -> None:
    text = (
        '{"install": [{"metadata": {"name": "Torch_X", "version": "1+cu130", "requires_dist": ["a"]}, '
        '"download_info": {"url": "https://x/torch_x-1%2Bcu130-py3-none-any.whl#sha256=aa", '
        '"archive_info": {"hash": "sha256=aa"}}}]}'
    )
    (wheel,) = parse_report(text)
    assert wheel == Wheel(
        name="torch-x",
        version="1+cu130",
        url="https://x/torch_x-1%2Bcu130-py3-none-any.whl",
        sha256="aa",
    )
    assert wheel.file_name == "torch_x-1+cu130-py3-none-any.whl"
    assert (wheel.label, wheel.requirement) == ("torch-x 1+cu130", "torch-x==1+cu130 --hash=sha256:aa")
    assert replace(wheel, sha256=None).requirement == "torch-x==1+cu130"


@pytest.mark.parametrize(
    ("archive", "sha256"),
    [
        ({"hashes": {"sha256": "bb"}, "hash": "sha256=aa"}, "bb"),
        ({"hashes": {"md5": "cc"}}, None),
        ({"hash": "md5=cc"}, None),
        ({}, None),
        (None, None),  # a folder, or a repository
    ],
)
def test_only_a_sha256_is_a_digest(archive: object, sha256: str | None) -> None:
    entry = {
        "metadata": {"name": "x", "version": "1"},
        "download_info": {"url": "https://x/x.whl", "archive_info": archive},
    }
    (wheel,) = parse_report(json.dumps({"install": [entry]}))
    assert wheel.sha256 == sha256


@pytest.mark.parametrize("text", ["", "{}", '{"install": [{}]}', '{"install": 3}'])
def test_a_report_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(CommandError):
        parse_report(text)


@pytest.mark.parametrize(
    ("lines", "error", "says"),
    [
        (["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"],
         InsufficientSpaceError, "disk is full"),
        (["error: Failed to extract archive", "  Caused by: There is not enough space on the disk. (os error 112)"],
         InsufficientSpaceError, "disk is full"),
        (["ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'"],
         NotWritableError, "No permission"),
        (["ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."],
         HashMismatchError, "other bytes"),
        (["  Requested torch from x has inconsistent version: expected '2.14.1+cu130', but metadata has '2.14.1+cpu'",
          "ERROR: No matching distribution found for torch==2.14.1+cu130"], NotTheFileError, "2.14.1+cpu"),
        (["ERROR: Could not find a version that satisfies the requirement torch==2.14.1+cu130 (from versions: 2.13.0)"],
         EntryNotFoundError, "it offers 2.13.0"),
        (["ERROR: Could not find a version that satisfies the requirement torch==2 (from versions: none)"],
         EntryNotFoundError, "none at all"),
        (["Could not fetch URL https://x/torch/: 401 Client Error: Unauthorized for url: https://x/torch/ - skipping",
          "ERROR: No matching distribution found for torch"], UnauthorizedError, "refused access"),
        (["Could not fetch URL https://x/torch/: (Caused by ResponseError('too many 503 error responses')) - skipping"],
         ServerError, "server error"),
        (["ERROR: HTTP error 429 while getting x", "requests.HTTPError: 429 Client Error: Too Many Requests"],
         RateLimitedError, "429"),
        (["Could not fetch URL https://x/torch/: connection error: [Errno 111] Connection refused - skipping",
          "ERROR: No matching distribution found for torch"], UnreachableError, "Connection refused"),
        (["ERROR: Exception:", "urllib3.exceptions.ProtocolError: ('Connection broken: IncompleteRead(1)')"],
         UnreachableError, "Connection broken"),
        (["The conflict is caused by:", "    greedy 1.0 depends on torch==2.13.0",
          "    The user requested (constraint) torch==2.14.1+cu130", "ERROR: ResolutionImpossible: for help visit ..."],
         CommandError, "greedy 1.0 depends on torch==2.13.0"),
        (["  x No solution found when resolving dependencies:", "Because greedy==1.0 depends on torch==2.13.0 and you"
          " require greedy, we can conclude that your requirements are unsatisfiable."],
         CommandError, "exclude each other (Because greedy==1.0 depends on torch==2.13.0"),
        (["error: the requirements are unsatisfiable"], CommandError, "the requirements exclude each other."),
        (["ERROR: something new"], CommandError, "something new"),
        ([], CommandError, "said nothing"),
    ],
)  # fmt: skip
def test_an_installers_last_words_become_an_error(lines: list[str], error: type[KleinError], says: str) -> None:
    found = explain_failure(lines, doing="install torch", index_url="https://me:secret@x.example/cu130")
    assert type(found) is error
    assert says in str(found)
    assert "secret" not in f"{found} {found.hint} {found.context}"
    assert found.hint


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (EntryNotFoundError("no", requirement="torch==2"), "torch==2"),
        (UnreachableError("no"), "something"),
        (CommandError("no", last_lines=["x", "Because sympy was not found in the cache and ..."]), "sympy"),
    ],
)
def test_what_is_missing_with_offline_is_named(error: KleinError, missing: str) -> None:
    found = offline_error(error, "install torch")
    assert isinstance(found, OfflineError)
    assert str(found).startswith(f"{missing} is not on this computer, and with --offline it is not fetched")
    assert found.context["missing"] == [missing]
    of_bundle = offline_error(error, "install torch", is_bundle=True)
    assert isinstance(of_bundle, OfflineError)
    assert str(of_bundle).startswith(f"The bundle has no wheel of {missing} for this Python and system;")
    assert of_bundle.context["missing"] == [missing]


def test_another_failure_with_offline_stays_what_it_is() -> None:
    error = CommandError("pip could not install torch", last_lines=["ERROR: something new"])
    assert offline_error(error, "install torch") is error


def test_pages_that_are_not_there_are_no_failure() -> None:
    log = "\n".join(
        f"2026-11-23T04:03:38,380 Could not fetch URL https://x/{name}/: {what} - skipping"
        for name, what in [
            ("a", "404 Client Error: Not Found for url"),
            ("b", "403 Client Error: Forbidden for url"),
            ("c", "connection error: refused"),
        ]
    )
    assert [line.split()[4] for line in page_failures(log)] == ["https://x/c/:"]


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [("sympy>=1.13", True), ("nvidia-cudnn-cu13==9.19", True), ("torch==2.14.1+cu130", False), ("torchaudio", False)],
)
def test_a_gap_is_anything_but_the_three(requirement: str, expected: bool) -> None:
    assert is_gap(EntryNotFoundError("no", requirement=requirement)) is expected
    assert not is_gap(UnreachableError("no", requirement=requirement))


# --- a name of the same length -----------------------------------------------------------------


@pytest.mark.parametrize("name", [".venv", "venv", "v", "~", "~venv", "Umgebung", "\u00e4-env", "\u73af\u5883"])
def test_the_folder_aside_has_a_name_as_long(name: str) -> None:
    for staging in staging_names(name):
        assert staging != name
        assert len(staging.encode()) == len(name.encode())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"#!/comfy/~venv/bin/python3.11\n", b"#!/comfy/.venv/bin/python3.11\n"),
        (b"#!C:\\comfy\\~venv\\Scripts\\python.exe\r\n", b"#!C:\\comfy\\.venv\\Scripts\\python.exe\r\n"),
        (b"VIRTUAL_ENV='/my comfy/~venv'\n", b"VIRTUAL_ENV='/my comfy/.venv'\n"),
        (b'set "VIRTUAL_ENV=C:\\comfy\\~venv"\r\n', b'set "VIRTUAL_ENV=C:\\comfy\\.venv"\r\n'),
        (b"command = python -m venv /comfy/~venv", b"command = python -m venv /comfy/.venv"),
        (b"/comfy/~venv2/bin x~venv/bin ~venv", b"/comfy/~venv2/bin x~venv/bin ~venv"),
    ],
)
def test_only_the_folder_itself_is_renamed_in_its_files(before: bytes, after: bytes) -> None:
    assert relocated(before, "~venv", ".venv") == after


def test_a_name_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="not of one length"):
        relocated(b"", "~venv", "env")


def test_a_windows_launcher_survives_the_exchange() -> None:
    launcher = files("pip._vendor.distlib").joinpath("t64.exe").read_bytes()  # what pip puts before path and archive
    archive = BytesIO()
    with ZipFile(archive, "w") as written:
        written.writestr("__main__.py", "print('it runs')")
    script = launcher + b"#!C:\\comfy\\~venv\\Scripts\\python.exe\r\n" + archive.getvalue()
    changed = relocated(script, "~venv", ".venv")
    assert len(changed) == len(script)
    assert changed.startswith(launcher)
    assert b"C:\\comfy\\.venv\\Scripts\\python.exe\r\n" in changed
    with ZipFile(BytesIO(changed)) as read:
        assert read.read("__main__.py") == b"print('it runs')"


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, InsufficientSpaceError),
        (errno.EACCES, NotWritableError),
        (errno.EROFS, NotWritableError),
        (errno.EBUSY, FileInUseError),
        (errno.EIO, StorageError),
    ],
)
def test_what_the_disk_refuses_has_a_name(number: int, error: type[StorageError]) -> None:
    found = disk_error(OSError(number, "no"), WHERE, doing="write")
    assert type(found) is error
    assert str(WHERE) in str(found)


WHEEL = "https://whl.example/cu130/torch.whl"


@pytest.mark.parametrize(
    ("url", "settings", "index_url", "route"),
    [
        (WHEEL, {}, None, Route()),
        (WHEEL, {}, "https://me:p%40ss@whl.example/cu130", Route(user=("me", "p@ss"))),
        (WHEEL, {}, "https://me:secret@other.example/cu130", Route()),  # nobody else sees the password
        (WHEEL, {}, "http://me:secret@whl.example/cu130", Route()),
        ("https://me:own@whl.example/x.whl", {}, "https://you:p@whl.example/", Route(user=("me", "own"))),
        (WHEEL, {"trusted-host": "a whl.example"}, None, Route(checks_certificate=False)),
        ("https://h:8443/x", {"trusted-host": "h:8443"}, None, Route(checks_certificate=False)),
        (
            WHEEL,
            {"proxy": "http://p:1", "cert": "/ca.pem", "client-cert": "/me.pem"},
            None,
            Route(proxy="http://p:1", certificates=Path("/ca.pem"), client_certificate=Path("/me.pem")),
        ),
    ],
)
def test_a_wheel_is_reached_as_pip_would(
    url: str, settings: dict[str, str], index_url: str | None, route: Route
) -> None:
    assert route_to(url, settings, index_url) == route


def test_without_a_network_only_folders_and_indexes_on_this_disk_are_left() -> None:
    mirror = {"index-url": "file:///srv/simple", "extra-index-url": "https://x.example", "proxy": "http://p:1"}
    assert without_network(mirror) == {"index-url": "file:///srv/simple", "proxy": "http://p:1"}
    assert without_network({"index-url": "https://x.example"}) == {"no-index": "1"}


def test_pip_says_which_file_it_unpacks_whatever_listed_it() -> None:
    said: list[str] = []
    listen = only_news(said.append)
    listen("stdout", "Processing ./cache/torch-2.13.0-cp311.whl (from -r /tmp/wheels.txt (line 1))")
    listen("stdout", r"Processing c:\cache\torch-2.13.0-cp311.whl")
    listen("stdout", "  Preparing metadata")
    assert said == ["Unpacking torch-2.13.0-cp311.whl"] * 2
