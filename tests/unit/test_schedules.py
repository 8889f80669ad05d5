"""What a system is given to run a command again and again; that systemd accepts it is `test_scrub_command`'s."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ET

import pytest

from provisioner.machine.schedules import Every, service_unit, task_xml, windows_word
from provisioner.report.metrics import metrics_text

EVERY: tuple[Every, ...] = ("hourly", "daily", "weekly")
WORDS = ("/bin/echo", "verify", "--comfyui", '/my models/50% $HOME "x" \\', "--for", "300s")


def test_a_unit_passes_each_word_as_it_is() -> None:
    unit = service_unit(WORDS, description="x", variables={"A": 'b c"%'})
    assert r"""ExecStart=/bin/echo verify --comfyui "/my models/50%% $$HOME \"x\" \\" --for 300s""" in unit
    assert r'''Environment="A=b c\"%%"''' in unit


@pytest.mark.parametrize("every", EVERY)
def test_a_task_is_xml_whose_elements_stand_in_the_order_of_the_schema(every: Every) -> None:
    text = task_xml(('C:\\my <&> "x"\\klein-setup.exe', *WORDS[1:]), every, description="<reads> & verifies")
    name = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    task = ET.fromstring(text.encode("utf-16"))  # noqa: S314 - our own
    assert [each.tag.removeprefix(name) for each in task] == [
        "RegistrationInfo", "Triggers", "Principals", "Settings", "Actions",
    ]  # fmt: skip
    trigger = task.find(f"{name}Triggers/{name}CalendarTrigger")
    assert trigger is not None
    days = "ScheduleByWeek" if every == "weekly" else "ScheduleByDay"
    repeated = ["Repetition"] if every == "hourly" else []
    found = [each.tag.removeprefix(name) for each in trigger]
    assert found == [*repeated, "StartBoundary", "Enabled", "RandomDelay", days]
    assert task.findtext(f"{name}Actions/{name}Exec/{name}Command") == 'C:\\my <&> "x"\\klein-setup.exe'
    arguments = task.findtext(f"{name}Actions/{name}Exec/{name}Arguments")
    assert arguments == r'verify --comfyui "/my models/50% $HOME \"x\" \\" --for 300s'
    assert arguments == subprocess.list2cmdline(WORDS[1:])


@pytest.mark.parametrize("word", ["", "a", "a b", "a\\", "a b\\", 'a "b', 'a\\" b', 'a b\\\\"', "\\\\host\\my share\\"])
def test_words_for_windows_are_written_as_python_writes_them(word: str) -> None:
    assert windows_word(word) == subprocess.list2cmdline([word])


def test_the_metrics_are_in_the_form_that_prometheus_reads() -> None:
    from provisioner.files.scrub_order import ScrubSummary

    summary = ScrubSummary(
        files=3, wrong=1, never_read=0, oldest_read_at=40, read_files=2, read_bytes=10**10, ended_at=100
    )
    text = metrics_text(summary, labels={"target": 'C:\\"x"', "set": "fp8"}, exit_status=1, ended_at=100)
    lines = text.splitlines()
    assert text.endswith("\n")
    assert not any(line.startswith(("#", "klein")) is False for line in lines)
    sample = re.compile(r'([a-z_]+)\{target="C:\\\\\\"x\\"",set="fp8"\} (\d+)')
    found = {match[1]: int(match[2]) for line in lines if (match := sample.fullmatch(line))}
    assert found == {
        "klein_setup_scrub_exit_status": 1,
        "klein_setup_scrub_last_run_timestamp_seconds": 100,
        "klein_setup_scrub_files": 3,
        "klein_setup_scrub_damaged_files": 1,
        "klein_setup_scrub_never_verified_files": 0,
        "klein_setup_scrub_read_files": 2,
        "klein_setup_scrub_read_bytes": 10**10,
        "klein_setup_scrub_oldest_verified_age_seconds": 60,
    }
    for name in found:
        assert lines.count(f"# TYPE {name} gauge") == 1
        assert sum(line.startswith(f"# HELP {name} ") for line in lines) == 1
