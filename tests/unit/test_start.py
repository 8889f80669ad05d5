"""What ``start`` decides from words alone: where ComfyUI listens, which log lines are shown, if a browser opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.comfyui.server.browser import has_display
from provisioner.comfyui.server.failures import port_taken_error
from provisioner.comfyui.server.launch import Launch, is_launched_as, listening_address, server_arguments
from provisioner.comfyui.server.log_lines import error_lines
from provisioner.core.errors import UsageError


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ("", "http://127.0.0.1:8188"),
        ("--port 9 --port 10", "http://127.0.0.1:10"),
        ("--listen", "http://127.0.0.1:8188"),
        ("--listen --port 9", "http://127.0.0.1:9"),
        ("--listen 0.0.0.0,:: --lowvram", "http://127.0.0.1:8188"),
        ("--listen=192.168.0.7", "http://192.168.0.7:8188"),
        ("--listen ::", "http://[::1]:8188"),
        ("--tls-keyfile k.pem --tls-certfile c.pem", "https://127.0.0.1:8188"),
        ("--tls-keyfile k.pem", "http://127.0.0.1:8188"),  # ComfyUI wants both
    ],
)
def test_the_address_is_where_comfyuis_own_arguments_put_it(words: str, url: str) -> None:
    address = listening_address(tuple(words.split()), 8188)
    assert (address.url, address.is_loopback) == (url, True)
    assert f"{address.host}:{address.port}" == url.partition("://")[2].replace("[", "").replace("]", "")


@pytest.mark.parametrize("words", ["--port", "--port x", "--port=0", "--port 65536", "--port -1"])
def test_what_is_no_port_is_a_usage_error(words: str) -> None:
    with pytest.raises(UsageError, match="not a port"):
        listening_address(tuple(words.split()), 8188)


@pytest.mark.parametrize(
    "line",
    [
        "!!! Exception during processing !!! mat1 and mat2 shapes cannot be multiplied",
        "torch.OutOfMemoryError: Allocation on device",
        "[WARNING] Cannot import /x/custom_nodes/broken module for custom nodes: No module named 'y'",
        "\x1b[31m[ERROR]\x1b[0m * UNETLoader 1:",
        "0.0 seconds (IMPORT FAILED): /x/custom_nodes/broken",
    ],
)
def test_a_line_about_a_failure_is_shown_without_its_colours(line: str) -> None:
    assert error_lines([line]) == [line.replace("\x1b[31m", "").replace("\x1b[0m", "")]


@pytest.mark.parametrize(
    "line",
    [
        "got prompt",
        "Traceback (most recent call last):",
        "    raise ValueError('no')",
        "[INFO] Found comfy_kitchen backend triton: {'unavailable_reason': \"ImportError: No module named 'triton'\"}",
        "loaded /x/custom_nodes/error-lens/__init__.py",
        "100%|##########| 4/4 [00:02<00:00]",
    ],
)
def test_what_is_no_failure_is_in_the_log_alone(line: str) -> None:
    assert error_lines([line]) == []


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "1 2 3 4"}, "linux", False),
        ({"BROWSER": "code-helper", "SSH_CONNECTION": "1 2 3 4"}, "linux", True),
        ({}, "darwin", True),
        ({}, "win32", True),
        ({"SSH_CONNECTION": "1 2 3 4"}, "win32", False),
    ],
)
def test_a_browser_is_opened_only_where_its_window_is_seen(
    environ: dict[str, str], platform: str, expected: bool
) -> None:
    assert has_display(environ, platform=platform) is expected


def test_the_users_own_comfyui_keeps_its_own_folders_and_the_users_words_come_last() -> None:
    launch = Launch(python=Path("py"), tree=Path("c"), extra=("--cpu", "--lowvram"))
    words = server_arguments(launch, 8190)
    assert words == (
        *("py", str(Path("c", "main.py")), "--listen", "127.0.0.1", "--port", "8190", "--disable-auto-launch"),
        *("--cpu", "--lowvram"),
    )
    assert launch.folders == ()
    assert is_launched_as(words[1:], launch, 8190)
    assert not is_launched_as(words[1:], launch, 8191)


def test_the_error_of_a_port_that_is_taken_names_who_has_it_and_the_next_port() -> None:
    address = listening_address((), 8188)
    error = port_taken_error(address, "nginx (process 7)")
    assert "Port 8188 is taken by nginx (process 7)" in str(error)
    assert error.hint is not None
    assert error.hint.endswith("with `klein-setup start --port 8189`.")
    assert "another program" in str(port_taken_error(address, None))
    assert (error.exit_status, error.context["cause"]) == (9, "port-taken")
