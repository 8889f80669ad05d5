"""The user's own defaults for options: ``klein-setup.toml`` in the platform's folder for configuration.

Imported only where there is such a file.  It holds values alone: no switch, which the command line could not turn off
again, so no consent either, and no token.  Whatever is not understood is an error with its line.
"""

from __future__ import annotations

import argparse
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from provisioner.cli.arguments import PATH_OPTIONS
from provisioner.core.errors import UsageError
from provisioner.core.models import Config
from provisioner.core.redact import redact
from provisioner.core.suggestions import did_you_mean

_LISTS = frozenset({"extra-model-paths", "look-in", "pass-env"})
KEYS = (
    *("manifest", "set", "comfyui", "hf-cache", "extra-model-paths", "look-in", "endpoint", "registry", "connections"),
    *("limit-rate", "stall-timeout", "torch", "torch-index", "package-index", "python", "comfyui-source", "pass-env"),
    *("size", "reserve-vram", "smoke-timeout", "verify-with"),
)
"""The options that may be set; each is written as on the command line, without the dashes."""

_PATHS = frozenset(key for key in KEYS if f"--{key}" in PATH_OPTIONS)

_NOT_TOGETHER = {"comfyui": ("hf-cache",), "hf-cache": ("comfyui",), "set": ("manifest", "hf-cache")}
"""Settings that do not count where the command line gives one of these options: they belong to another choice."""

_LONGEST_BYTES = 65_536


def read_config(path: Path) -> Config:
    """Return the settings of a file.

    Raises
    ------
    UsageError
        It cannot be read, is no TOML, or has a key or a value that is not understood; with file, line and key.
    """
    text = _text_of(path)
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # until 3.10 is given up
        import tomli as tomllib
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {redact(str(error))}.", hint=_HINT) from error
    for key, value in found.items():
        _check(path, text, key, value)
    if {"comfyui", "hf-cache"} <= found.keys():
        _refuse(path, text, "hf-cache", "names a second target beside comfyui; expected one of the two")
    return Config(file=path, settings=found)


_HINT = "Correct the file, or move it away."


def _text_of(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is not a regular file.", hint=_HINT)
        with path.open("rb") as stream:
            data = stream.read(_LONGEST_BYTES + 1)
        if len(data) > _LONGEST_BYTES:
            raise UsageError(f"{path} is longer than {_LONGEST_BYTES} bytes.", hint=_HINT)
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.", hint=_HINT) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.", hint=_HINT) from error


def _check(path: Path, text: str, key: str, value: object) -> None:
    """Raise UsageError for a key that is none, or a value of another kind, or one that holds a secret."""
    if re.search("token|password|secret", key, re.I) or any(redact(each) != each for each in _texts(value)):
        _refuse(
            path, text, key, "holds a token or a password; expected none in this file, which programs copy and show",
            hint="Take it out. A token comes from HF_TOKEN or `hf auth login`, a password of an index from ~/.netrc.",
        )  # fmt: skip
    if key not in KEYS:
        _refuse(path, text, key, f"is not a setting.{did_you_mean(key, KEYS)} Expected one of: {', '.join(KEYS)}")
    if key in _LISTS:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            _refuse(path, text, key, 'is no list of texts; expected one, like ["/data/models"]')
    elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
        _refuse(path, text, key, "is neither a text nor a number; expected one of them")
    for each in _texts(value) if key in _PATHS else ():
        if not Path(each).expanduser().is_absolute():
            _refuse(path, text, key, f"is {each!r}, which means another place in each folder; expected a full path")


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a value, also in the lists and tables in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _refuse(path: Path, text: str, key: str, complaint: str, *, hint: str = _HINT) -> NoReturn:
    found = re.search(rf"""^\s*\[*\s*["']?{re.escape(key)}\b""", text, re.M)
    line = text.count("\n", 0, found.end()) + 1 if found else 1
    raise UsageError(f"{path}:{line}: {redact(key)} {complaint}.", hint=hint, file=str(path), line=line, key=key)


# --- as defaults of options --------------------------------------------------------------------


def use_as_defaults(parser: argparse.ArgumentParser, config: Config, given: Sequence[str]) -> None:
    """Make the settings the defaults of the options of `parser`; what was given on the command line wins.

    Raises
    ------
    UsageError
        An option does not take that value.
    """
    named = {word.partition("=")[0] for word in given}
    for key, value in config.settings.items():
        others = (
            *_NOT_TOGETHER.get(key, ()),
            *(("comfyui",) if key == "set" and "hf-cache" in config.settings else ()),
        )
        if not named.isdisjoint(f"--{other}" for other in others):
            continue
        for action in _actions(parser, f"--{key}"):
            action.default = _parsed(config, key, value, action)


def _actions(parser: argparse.ArgumentParser, option: str) -> Iterator[argparse.Action]:
    """Yield the option of each command that has it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                yield from _actions(each, option)
        elif option in action.option_strings:
            yield action


def _parsed(config: Config, key: str, value: object, action: argparse.Action) -> object:
    """Return what the option would make of the value; raises UsageError."""
    values: list[Any] = []
    for each in value if isinstance(value, list) else [value]:
        text = str(each)
        if key in _PATHS or text.startswith("~"):
            text = str(Path(text).expanduser())
        try:
            values.append(action.type(text) if callable(action.type) else text)
        except (argparse.ArgumentTypeError, ValueError) as error:
            _refuse(config.file, config.file.read_text(encoding="utf-8-sig"), key, f"is wrong: {error}")
    return values if isinstance(value, list) else values[0]
