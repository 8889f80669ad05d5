"""The options that the user's own ComfyUI is started with: how a line of them is split, and which of them we set.

Pure: text and words in, values out.  What klein-setup sets itself for a server of its own (where it listens, where it
writes, where its log goes) is never taken from the user; everything else is passed on as it stands, and whether this
release of ComfyUI has such an option is ComfyUI's to say.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from provisioner.core.errors import UsageError
from provisioner.core.program import quoted
from provisioner.core.redact import MASK, printable, redact

_OURS = {
    "--listen": "where the test server listens",
    "--port": "where the test server listens",
    "--tls-keyfile": "how the test server is reached",
    "--tls-certfile": "how the test server is reached",
    "--output-directory": "where the test server writes",
    "--temp-directory": "where the test server writes",
    "--user-directory": "where the test server writes",
    "--database-url": "where the test server writes",
    "--base-directory": "where models and custom nodes are (--comfyui DIR)",
    "--auto-launch": "that no browser is opened",
    "--disable-auto-launch": "that no browser is opened",
    "--windows-standalone-build": "that no browser is opened",
    "--verbose": "where the log goes",
    "--log-stdout": "where the log goes",
    "--dont-print-server": "where the log goes",
    "--front-end-version": "that nothing is fetched at the start",
    "--front-end-root": "that no pages are served",
}
"""Options of ComfyUI that klein-setup sets itself, or leaves out, and what each is about."""

_ENDING = {
    "--quick-test-for-ci": "ends ComfyUI before an image is made",
    "--list-feature-flags": "ends ComfyUI before an image is made",
    "--help": "ends ComfyUI before an image is made",
    "-h": "ends ComfyUI before an image is made",
}
_ALL_OFF, _WHITELIST = "--disable-all-custom-nodes", "--whitelist-custom-nodes"
_SECRET = re.compile(r"token|secret|passw|api-?key|credential", re.IGNORECASE)
_OPTION = re.compile(r"--?[A-Za-z]")
_LONGEST = 8_192  # characters of a command line: Windows itself allows no longer one in a batch file


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersFlags:
    """Options that ComfyUI gets from the user, and where they were found."""

    words: tuple[str, ...] = ()  # without those that klein-setup sets itself
    origin: str = "--comfyui-args"  # as a clause: "run_nvidia_gpu.bat", "the ComfyUI that runs at http://..."
    left_out: tuple[str, ...] = ()  # options that were given there and are not passed on

    @property
    def options(self) -> tuple[tuple[str, ...], ...]:
        """The words, each option with its values."""
        return options_of(self.words)

    @property
    def shown(self) -> str:
        """The words as they are typed, without secrets."""
        return shown_words(self.words)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values of options that are named like secrets."""
        named = [each for each in self.options if _SECRET.search(each[0].partition("=")[0])]
        return tuple(word for each in named for word in (each[0].partition("=")[2], *each[1:]) if word)


def shown_words(words: Sequence[str]) -> str:
    """Return words as they are typed in a shell, with what may be secret masked.

    >>> shown_words(["--fast", "fp16_accumulation", "--x", "my models", "--api-key", "abcdef", "--token=abcdef"])
    "--fast fp16_accumulation --x 'my models' --api-key *** --token=***"
    """
    shown: list[str] = []
    is_secret = False
    for word in words:
        name, equals, _ = word.partition("=")
        if _OPTION.match(word):
            is_secret = _SECRET.search(name) is not None
            shown.append(f"{name}={MASK}" if is_secret and equals else quoted(redact(printable(word)), "posix"))
        else:
            shown.append(MASK if is_secret else quoted(redact(printable(word)), "posix"))
    return " ".join(shown)


def split_line(text: str, *, is_windows: bool) -> tuple[str, ...]:
    r"""Return the words of a command line, as a shell splits it, or as Windows' programs do; nothing is expanded.

    Raises
    ------
    UsageError
        A quote is open at the end, or the line is longer than any that is meant.

    Examples
    --------
    >>> split_line("--fast 'a b'", is_windows=False), split_line('--x "C:\\my models\\\\" --fast', is_windows=True)
    (('--fast', 'a b'), ('--x', 'C:\\my models\\', '--fast'))
    """
    if len(text) > _LONGEST:
        raise UsageError("The options for ComfyUI are too long.", hint=f"Give at most {_LONGEST} characters.")
    try:
        return tuple(_windows_words(text)) if is_windows else tuple(shlex.split(text))
    except ValueError:
        raise UsageError(
            "The options for ComfyUI end inside quotes.",
            hint='Close the quotes: --comfyui-args "--fast --reserve-vram 2".',
        ) from None


def _windows_words(text: str) -> Iterator[str]:
    """Yield words as Microsoft's C runtime reads them: 2n backslashes before a quote are n, an odd one escapes it."""
    word, is_quoted, has_begun, at = "", False, False, 0
    while at < len(text):
        character = text[at]
        if character == "\\":
            end = at
            while end < len(text) and text[end] == "\\":
                end += 1
            run = end - at
            is_before_quote = end < len(text) and text[end] == '"'
            word += "\\" * (run // 2 if is_before_quote else run)
            has_begun, at = True, end
            if is_before_quote and run % 2:
                word, at = word + '"', end + 1
            continue
        if character == '"':
            is_quoted, has_begun = not is_quoted, True
        elif character.isspace() and not is_quoted:
            if has_begun:
                yield word
            word, has_begun = "", False
        else:
            word, has_begun = word + character, True
        at += 1
    if is_quoted:
        raise ValueError
    if has_begun:
        yield word


def options_of(words: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return words in groups: each option with the values behind it.

    >>> options_of(["--fast", "a", "b", "--reserve-vram", "-1", "--cpu"])
    (('--fast', 'a', 'b'), ('--reserve-vram', '-1'), ('--cpu',))
    """
    groups: list[list[str]] = []
    for word in words:
        if _OPTION.match(word) or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    return tuple(tuple(each) for each in groups)


def typed_flags(text: str, *, is_windows: bool) -> UsersFlags:
    """Return the options that the user typed for ComfyUI.

    Raises
    ------
    UsageError
        It is no option, ends ComfyUI at once, or is one that klein-setup sets itself.
    """
    words = split_line(text, is_windows=is_windows)
    for option in options_of(words):
        name = option[0].partition("=")[0]
        if not _OPTION.match(name):
            raise UsageError(
                f"{redact(printable(name))!r} is no option of ComfyUI.",
                hint='Give options as you give them to main.py: --comfyui-args "--use-sage-attention --fast".',
            )
        reason = _why_not(name)
        if reason is not None:
            raise UsageError(f"{name} cannot be given in --comfyui-args: {reason}.", hint=f"Leave {name} out.")
    return UsersFlags(words=words)


def found_flags(words: Iterable[str], origin: str) -> UsersFlags:
    """Return the options that were found somewhere: what klein-setup sets itself is left out, and named.

    >>> found_flags(["--windows-standalone-build", "--port", "8000", "--fast"], "run.bat")
    UsersFlags(words=('--fast',), origin='run.bat', left_out=('--windows-standalone-build', '--port'))
    """
    kept: list[str] = []
    left_out: list[str] = []
    for option in options_of(tuple(words)):
        name = option[0].partition("=")[0]
        if not _OPTION.match(name):
            continue  # a word before any option: no option of ComfyUI is one
        if _why_not(name) is None:
            kept += option
        else:
            left_out.append(name)
    return UsersFlags(words=tuple(kept), origin=origin, left_out=tuple(dict.fromkeys(left_out)))


def _why_not(name: str) -> str | None:
    """Return why an option is not passed on; argparse takes the beginning of an option for the whole."""
    if name in _ENDING:
        return f"it {_ENDING[name]}"
    if name in _OURS:
        return f"klein-setup sets {_OURS[name]}"
    shortened = [each for each in _OURS if len(name) > 3 and each.startswith(name)]
    if shortened:
        return f"it stands for {shortened[0]}, and klein-setup sets {_OURS[shortened[0]]}"
    return None


def without_node_options(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return words without the options about custom nodes, and the nodes that they leave on; None: all are.

    >>> without_node_options(["--disable-all-custom-nodes", "--whitelist-custom-nodes", "a", "b", "--fast"])
    (('--fast',), ('a', 'b'))
    >>> without_node_options(["--fast"])
    (('--fast',), None)
    """
    options = options_of(words)
    are_off = any(each[0] == _ALL_OFF for each in options)
    listed: list[str] = []
    for each in options:
        if each[0].partition("=")[0] == _WHITELIST:  # the last one counts, as argparse has it
            listed = [*([each[0].partition("=")[2]] if "=" in each[0] else []), *each[1:]]
    kept = [word for each in options if each[0].partition("=")[0] not in {_ALL_OFF, _WHITELIST} for word in each]
    return tuple(kept), tuple(listed) if are_off else None


def node_options(nodes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the options that leave only these custom nodes on; none for None, which leaves all on.

    >>> node_options(["a", "b.py"]), node_options([]), node_options(None)
    (('--disable-all-custom-nodes', '--whitelist-custom-nodes', 'a', 'b.py'), ('--disable-all-custom-nodes',), ())
    """
    if nodes is None:
        return ()
    return (_ALL_OFF, _WHITELIST, *nodes) if nodes else (_ALL_OFF,)


def known_options(source: str) -> frozenset[str]:
    """Return the options that ComfyUI's ``comfy/cli_args.py`` defines; its text is read, never run.

    >>> sorted(known_options('g.add_argument("--cpu", action="store_true"); parser.add_argument("--a", "--b")'))
    ['--a', '--b', '--cpu']
    """
    found: set[str] = set()
    for call in re.findall(r"add_argument\(([^)]{0,300})", source):
        found.update(re.findall(r"[\"'](--[a-z0-9][a-z0-9_-]{0,60})[\"']", call))
    return frozenset(found)
