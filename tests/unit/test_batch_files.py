"""The flags in the batch files of ComfyUI's portable build."""

from __future__ import annotations

from pathlib import PureWindowsPath

import pytest

from provisioner.comfyui.batch_files import BatchFile, parse_batch_file, unread_folders

# .ci/windows_nvidia_base_files/run_nvidia_gpu.bat of ComfyUI 0.33.0
SHIPPED = ".\\python_embeded\\python.exe -s ComfyUI\\main.py --windows-standalone-build\r\npause\r\n"
FOLDER = PureWindowsPath("C:/ComfyUI_windows_portable")


def flags(text: str) -> tuple[str, ...] | None:
    found = parse_batch_file("run.bat", text, FOLDER)
    return None if found is None else found.flags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SHIPPED, ("--windows-standalone-build",)),
        (SHIPPED.replace("build", "build --fast x"), ("--windows-standalone-build", "--fast", "x")),
        ("set X=1\n@python ComfyUI\\main.py --lowvram ^\n  --port 8189 & pause", ("--lowvram", "--port", "8189")),
        ("python main.py --a > log.txt 2>&1", ("--a",)),
        ("python main.py --a 2>nul", ("--a",)),
        (
            'python main.py --base-directory "D:\\my & models" "%*" %1 --b',
            ("--base-directory", "D:\\my & models", "--b"),
        ),
        ('"python.exe" "ComfyUI\\main.py" --a', ("--a",)),
        ("REM python main.py --a\n:: python main.py --b\n@rem x\npython MAIN.PY --c", ("--c",)),
        ("python main.py --x %~dp0models --y %CD%\\z", ("--x", f"{FOLDER}\\models", "--y", f"{FOLDER}\\z")),
        ("python main.py --name a^&b", ("--name", "a&b")),
        ('python main.py --empty ""', ("--empty", "")),
        ("python main.py", ()),
        ("python main.pyc --a\npause", None),
        ("git pull", None),
        ("", None),
    ],
)
def test_flags_are_what_follows_main_py(text: str, expected: tuple[str, ...] | None) -> None:
    assert flags(text) == expected


def test_a_flag_that_names_another_folder_is_said_once_with_what_to_do() -> None:
    files = [
        BatchFile(
            "run_a.bat", ("--fast", "--base-directory", "D:\\AI", "--extra-model-paths-config=x.yaml", "--fast", "a")
        ),
        BatchFile("run_b.bat", ("--base-directory", "d:\\ai")),
    ]
    base, config = unread_folders(files, FOLDER, ())
    assert base.message.startswith("run_a.bat and run_b.bat start ComfyUI with --base-directory D:\\AI")
    assert base.hint is not None
    assert '--comfyui "D:\\AI"' in base.hint
    assert "--extra-model-paths-config C:\\ComfyUI_windows_portable\\x.yaml" in config.message
    assert config.hint is not None
    assert "--extra-model-paths " in config.hint


def test_what_was_looked_at_is_not_said() -> None:
    words = (
        "--models-directory",
        "C:\\ComfyUI_windows_portable\\ComfyUI\\models",
        "--extra-model-paths-config",
        "a",
        "b",
    )
    files = [BatchFile("run.bat", words)]
    read = (FOLDER / "comfyui/MODELS", FOLDER / "A")
    assert [each.message.partition(": ")[0][-1] for each in unread_folders(files, FOLDER, read)] == ["b"]
