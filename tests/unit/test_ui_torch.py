"""What the choice of a torch build looks like."""

from __future__ import annotations

from dataclasses import replace

from provisioner.torch.builds import TorchBuild, TorchChoice, TorchSet, TorchWarning
from provisioner.ui.text import laid_out, rendered
from provisioner.ui.torch_text import torch_blocks

NEWEST = TorchSet(torch="2.14.1", torchvision="0.29.1", torchaudio="2.11.0")
OLDER = TorchSet(torch="2.14.0", torchvision="0.29.0", torchaudio=None)
OLDEST = TorchSet(torch="2.11.0", torchvision="0.26.0", torchaudio=None)
BUILD = TorchBuild(
    torch_backend="cu130",
    index_url="https://download.pytorch.org/whl/cu130",
    local_tag="cu130",
    sets=(NEWEST, OLDER, OLDEST),
    sm=(75, 86, 120),
)
CHOICE = TorchChoice(
    build=BUILD,
    reasons=("cu130 is the preferred build.", "Its machine code sm_86 runs on the RTX 4070."),
    runner_up="cu126 (torch 2.14.1) would run too; cu130 comes first.",
)


def generated(choice: TorchChoice, width: int | None = None) -> str:
    return "\n".join(rendered(line, is_coloured=False) for line in laid_out(torch_blocks(choice), width=width))


def test_the_whole_choice_is_shown_at_once() -> None:
    assert generated(CHOICE).splitlines() == [
        "Torch",
        "  build      cu130",
        "  packages   torch 2.14.1, torchvision 0.29.1, torchaudio 2.11.0",
        "  or         2 older sets, back to torch 2.11.0, where the index has no newer one",
        "  index      https://download.pytorch.org/whl/cu130",
        "  code for   compute capability 7.5, 8.6, 12.0",
        "  because    cu130 is the preferred build.",
        "             Its machine code sm_86 runs on the RTX 4070.",
        "  runner-up  cu126 (torch 2.14.1) would run too; cu130 comes first.",
    ]


def test_amds_architectures_and_their_packages_are_shown() -> None:
    amd = replace(BUILD, sm=(), gfx=("gfx1030", "gfx1100"), device_extras=("device-gfx1030", "device-gfx1100"))
    text = generated(replace(CHOICE, build=amd))
    assert "  code for   gfx1030, gfx1100\n" in text
    assert "  with       the packages of device-gfx1030 and device-gfx1100, which hold the code itself\n" in text


def test_what_is_not_there_is_not_drawn() -> None:
    plain = TorchBuild(torch_backend="default", index_url=None, local_tag=None, sets=(OLDER,))
    text = generated(TorchChoice(build=plain, reasons=("It is the build for Apple chips.",), runner_up=None))
    assert "the installer's own default index" in text
    assert "torch 2.14.0, torchvision 0.29.0\n" in text
    for word in ("runner-up", "code for", "older", "torchaudio", "None", "not served"):
        assert word not in text


def test_a_build_without_sets_is_drawn_without_packages() -> None:
    assert "packages" not in generated(replace(CHOICE, build=replace(BUILD, sets=())))


def test_one_older_set_is_named_by_its_version() -> None:
    text = generated(replace(CHOICE, build=replace(BUILD, sets=(NEWEST, OLDER))))
    assert "1 older set, torch 2.14.0, where" in text


def test_virtual_code_is_marked() -> None:
    text = generated(replace(CHOICE, build=replace(BUILD, sm=(), ptx=(120,))))
    assert "compute capability 12.0 and newer, compiled by the driver" in text


def test_gpus_that_are_left_out_and_warnings_are_shown_with_what_to_do() -> None:
    warned = replace(
        CHOICE,
        uncovered=("GTX 1080", "GTX 970"),
        warnings=(
            TorchWarning(code="mixed-gpus", message="cu130 has no code for the GTX 1080.", hint="Hide it."),
            TorchWarning(code="no-fp8", message="FP8 is computed in a wider type."),
        ),
    )
    text = generated(warned)
    assert "not served  GTX 1080 and GTX 970" in text
    assert "  warning  cu130 has no code for the GTX 1080." in text
    assert "           hint: Hide it." in text
    assert text.count("hint:") == 1


def test_it_fits_a_narrow_window() -> None:
    assert max(map(len, generated(CHOICE, width=60).splitlines())) <= 60
