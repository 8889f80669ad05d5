"""What makes a system run a command again and again: systemd's units, and a task of Windows' Task Scheduler.

https://www.freedesktop.org/software/systemd/man/latest/systemd.timer.html,
https://learn.microsoft.com/windows/win32/taskschd/task-scheduler-schema; elements stand in the order of its exports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal
from xml.sax.saxutils import escape

Every = Literal["hourly", "daily", "weekly"]

WRITTEN_BY = "Written by `klein-setup verify --schedule`; `--schedule off` removes it."
"""In each file, so that nobody else's is replaced or removed."""

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_WINDOWS_PLAIN = re.compile(r'[^\s"]+')


def service_unit(words: Sequence[str], *, description: str, variables: Mapping[str, str]) -> str:
    """Return a service that runs a command once, with the least claim on processor and disk.

    Parameters
    ----------
    words : sequence of str
        The command; the program by its absolute path.
    description : str
        What it does, for `systemctl status`.
    variables : mapping of str to str
        Environment variables that it gets.
    """
    given = "".join(f"Environment={systemd_word(f'{name}={value}')}\n" for name, value in variables.items())
    return (
        f"# {WRITTEN_BY}\n[Unit]\nDescription={_one_line(description)}\n\n[Service]\nType=oneshot\n{given}"
        f"ExecStart={' '.join(systemd_word(word, is_started=True) for word in words)}\n"
        "Nice=19\nIOSchedulingClass=idle\n"
    )


def timer_unit(every: Every, *, description: str) -> str:
    """Return a timer for the service of the same name; a run that was missed is made up for."""
    return (
        f"# {WRITTEN_BY}\n[Unit]\nDescription={_one_line(description)}\n\n[Timer]\nOnCalendar={every}\n"
        f"RandomizedDelaySec={'10min' if every == 'hourly' else '1h'}\nPersistent=true\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )


def systemd_word(word: str, *, is_started: bool = False) -> str:
    r"""Return a word as it is written in a unit, where ``%`` and, in a command, ``$`` have a meaning of their own.

    >>> print(systemd_word("/my models/100%"), systemd_word('$a"b', is_started=True))
    "/my models/100%%" "$$a\"b"
    """
    text = word.replace("%", "%%")
    text = text.replace("$", "$$") if is_started else text
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _one_line(text: str) -> str:
    return " ".join(text.replace("%", "%%").split())


def task_xml(words: Sequence[str], every: Every, *, description: str) -> str:
    """Return a task as ``schtasks /Create /XML`` takes it, for the user who creates it; to be written as UTF-16.

    Parameters
    ----------
    words : sequence of str
        The command; the program by its absolute path.
    every : Every
        How often.
    description : str
        What it does.
    """
    repeated = "<Repetition><Interval>PT1H</Interval></Repetition>" if every == "hourly" else ""
    days = (
        "<ScheduleByWeek><WeeksInterval>1</WeeksInterval><DaysOfWeek><Sunday /></DaysOfWeek></ScheduleByWeek>"
        if every == "weekly"
        else "<ScheduleByDay><DaysInterval>1</DaysInterval></ScheduleByDay>"
    )
    arguments = " ".join(windows_word(word) for word in words[1:])
    return f"""\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>{escape(f"{description} {WRITTEN_BY}")}</Description>
  </RegistrationInfo>
  <Triggers>
    <CalendarTrigger>
      {repeated}<StartBoundary>2026-01-01T03:17:00</StartBoundary>
      <Enabled>true</Enabled>
      <RandomDelay>{"PT10M" if every == "hourly" else "PT1H"}</RandomDelay>
      {days}
    </CalendarTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>true</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>true</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <Enabled>true</Enabled>
    <Priority>9</Priority>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(words[0])}</Command>
      <Arguments>{escape(arguments)}</Arguments>
    </Exec>
  </Actions>
</Task>
"""


def windows_word(word: str) -> str:
    r"""Return a word as a Windows program reads it from its command line (CommandLineToArgvW).

    >>> print(windows_word("C:\\my models\\"), windows_word('a"b'), windows_word(""))
    "C:\my models\\" "a\"b" ""
    """
    if _WINDOWS_PLAIN.fullmatch(word):
        return word
    text = re.sub(r'(\\*)"', r'\1\1\\"', word)
    return '"' + re.sub(r"(\\+)$", r"\1\1", text) + '"'
