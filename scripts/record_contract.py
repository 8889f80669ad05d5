#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "nvidia-ml-py>=12.560",
#     "pyyaml>=6.0.2",
#     "requests>=2.32.3",
# ]
# ///
"""Record what the real things say, for tests/contract/data: NVML, the Hub's headers, a ComfyUI server.

    uv run --script scripts/record_contract.py nvml [--write]
    uv run --script scripts/record_contract.py hub --repo ORG/NAME --revision COMMIT --filename PATH [--write]
    uv run --script scripts/record_contract.py comfyui --server URL [--replace FOLDER=/opt/ComfyUI] [--write]

Prints how the recordings differ from those that are kept, and writes only with ``--write``.  GPU ids, the home folder,
the machine's name, tokens and queries of addresses are replaced; a ComfyUI server's own folders have to be, with
``--replace``.  It asks and changes nothing: no image is generated, the one prompt it sends is one that is refused.

Exit status: 0 nothing differs; 1 something does; 2 something private would be recorded; 3, 5 it could not
be looked at.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from provisioner.commands.run import load_manifest  # noqa: E402
from provisioner.core.errors import (  # noqa: E402
    EXIT_FINDINGS,
    EXIT_OK,
    ServerError,
    UnreachableError,
    UnsupportedMachineError,
    UsageError,
)
from provisioner.core.redact import redact  # noqa: E402
from provisioner.files.hub_cache import endpoint, find_token  # noqa: E402 - found through the line above
from provisioner.report.outcome import DEFAULT_MANIFEST  # noqa: E402
from provisioner.smoke_test.graph import LOADERS, build_graph, recipe_of  # noqa: E402
from provisioner.smoke_test.results import ImageOptions, ModelNames  # noqa: E402
from scripts.refreshing import run, say  # noqa: E402

DATA = ROOT / "tests" / "contract" / "data"
TIMEOUT_S = 60.0
VOLATILE = frozenset({"t", "date", "free", "ram_free", "torch_vram_free", "used", "vram_free"})
"""Keys whose values differ from one second to the next; a recording that differs in nothing else is kept as it is."""

# --- what is kept ---------------------------------------------------------------------------------


@dataclass
class Recording:
    """What was said: the folder it belongs to, its files, and where it comes from."""

    folder: str
    origin: str  # a paragraph: of what, with which versions
    files: dict[str, Any] = field(default_factory=dict)  # JSON by file name


class Scrubber:
    """Takes out of recorded texts what belongs to a person or a machine.

    Parameters
    ----------
    replaced : mapping of str to str
        Texts and what stands for them.
    home : str
        The home folder of who records.
    machine : str
        The machine's name.
    """

    def __init__(self, replaced: Mapping[str, str], *, home: str, machine: str) -> None:
        known = dict(replaced)
        if len(Path(home).parts) > 1:  # services live in "/"
            known.setdefault(home, "/home/user")
        self._known = sorted(known.items(), key=lambda pair: -len(pair[0]))
        name = machine.partition(".")[0]
        # A short name, or one that is a word, would be replaced where it means something else.
        self._name = re.compile(rf"\b{re.escape(name)}\b") if len(name) > 5 and name != "localhost" else None
        self._uuids: dict[str, str] = {}

    def __call__(self, value: Any) -> Any:  # noqa: ANN401 - any JSON
        """Return a copy of a JSON value without them."""
        if isinstance(value, dict):
            return {self(key): self(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self(each) for each in value]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        for old, new in self._known:
            text = text.replace(old, new)
        if self._name is not None:
            text = self._name.sub("host", text)
        text = re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", self._uuid, text)
        return redact(text)

    def _uuid(self, match: re.Match[str]) -> str:
        number = len(self._uuids) + 1
        return self._uuids.setdefault(match[0], f"00000000-0000-0000-0000-{number:012}")


# --- NVML -----------------------------------------------------------------------------------------

SYSTEM_QUESTIONS = (
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetNVMLVersion",
    "nvmlSystemGetCudaDriverVersion",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlDeviceGetCount",
)
DEVICE_QUESTIONS = (
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetArchitecture",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetDisplayActive",
    "nvmlDeviceGetDisplayMode",
    "nvmlDeviceGetBrand",
    "nvmlDeviceGetPersistenceMode",
    "nvmlDeviceGetCurrentDriverModel",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetMemoryInfo",
)
VERSION_FILES = ("/proc/driver/nvidia/version", "/sys/module/nvidia/version")


def record_nvml(library: Any) -> Recording:  # noqa: ANN401 - a module without types
    """Return what NVML says of the machine and of its first GPU, errors included.

    Parameters
    ----------
    library : module
        pynvml, or what answers like it.

    Raises
    ------
    UnsupportedMachineError
        There is no NVML, or no GPU that it knows.
    """
    try:
        library.nvmlInit()
        handle = library.nvmlDeviceGetHandleByIndex(0)
    except library.NVMLError as error:
        raise UnsupportedMachineError(
            f"NVML does not answer on this machine: {error}", hint="Run it on a machine with an NVIDIA GPU."
        ) from error
    try:
        said = {name: _answer(library, getattr(library, name)) for name in SYSTEM_QUESTIONS}
        said |= {name: _answer(library, getattr(library, name), handle) for name in DEVICE_QUESTIONS}
        second = _answer(library, library.nvmlDeviceGetMemoryInfo, handle, version=library.nvmlMemory_v2)
        said["nvmlDeviceGetMemoryInfo_v2"] = second
        pci = _answer(library, library.nvmlDeviceGetPciInfo, handle)
        said["pci"] = {"busId": pci.get("busId")} if "error" not in pci else pci
    finally:
        library.nvmlShutdown()
    said["platform"] = {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    said["files"] = {name: Path(name).read_text(encoding="utf-8") for name in VERSION_FILES if Path(name).is_file()}
    gpu, driver = str(said["nvmlDeviceGetName"]), str(said["nvmlSystemGetDriverVersion"])
    short = re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia").strip()).strip("-")
    origin = (
        f"Answers of NVML {said['nvmlSystemGetNVMLVersion']} (driver {driver}) for the first {gpu}, through "
        f"{getattr(library, '__name__', 'pynvml')} on {platform.system()} {platform.machine()}, Python "
        f"{platform.python_version()}.  GPU ids were replaced by numbers."
    )
    return Recording(f"nvml-{short}-{driver.partition('.')[0]}", origin, {"nvml.json": said})


def _answer(library: Any, ask: Callable[..., Any], *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
    """Return an answer as JSON: a structure by its fields, an error by its class, number and text."""
    try:
        value = ask(*arguments, **more)
    except library.NVMLError as error:
        return {"error": type(error).__name__, "value": getattr(error, "value", None), "message": str(error)}
    if hasattr(value, "_fields_"):
        return {name: _plain(getattr(value, name)) for name, *_ in value._fields_ if name != "version"}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip("\0")
    return value if isinstance(value, str | int | float | bool | None) else str(value)


# --- the Hub --------------------------------------------------------------------------------------

KEPT_HEADERS = frozenset(
    {
        "accept-ranges",
        "access-control-expose-headers",
        "cache-control",
        "content-disposition",
        "content-length",
        "content-range",
        "content-type",
        "etag",
        "link",
        "location",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "vary",
        "www-authenticate",
        "x-error-code",
        "x-error-message",
        "x-linked-etag",
        "x-linked-size",
        "x-repo-commit",
        "x-xet-hash",
    }
)
"""What says something of a file or of a refusal; of the others, which name requests, caches and people, only names."""


def record_hub(address: str, repo_id: str, revision: str, filename: str, token: str | None) -> Recording:
    """Return the headers of the first answers about one file, up to its first byte.

    Parameters
    ----------
    address : str
        Of the Hub; the token is sent to it and nowhere else.
    repo_id, revision, filename : str
        The file.
    token : str or None
        For a file that is not public.

    Raises
    ------
    UnreachableError
        The Hub, or its content network, was not reached.
    """
    url = f"{address}/{repo_id}/resolve/{quote(revision, safe='')}/{quote(filename)}"
    entries: list[dict[str, Any]] = []
    headers = {"Accept-Encoding": "identity"}
    own = {**headers, "Authorization": f"Bearer {token}"} if token else headers
    entries.append(_headers_of(_ask("HEAD", url, headers=own), address))
    for _ in range(4):
        is_own = _origin(url) == _origin(address)
        response = _ask("GET", url, headers={**(own if is_own else headers), "Range": "bytes=0-0"})
        entries.append(_headers_of(response, address))
        if not response.is_redirect:
            break
        url = requests.compat.urljoin(url, response.headers["Location"])
    name = f"{repo_id.replace('/', '--')}--{Path(filename).name}.json"
    origin = f"Headers of {_origin(address)} for {filename} of {repo_id} at {revision}: a HEAD, then one byte by range."
    return Recording("hub", origin, {name: entries})


def _headers_of(response: requests.Response, address: str) -> dict[str, Any]:
    parts = urlsplit(response.url)
    is_own = _origin(response.url) == _origin(address)
    kept = {name: value for name, value in response.headers.items() if name.lower() in KEPT_HEADERS}
    return {
        "http": f"{response.request.method} {parts.path}",
        "server": "hub" if is_own else "content network",
        "status": response.status_code,
        "headers": kept,
        "other_headers": sorted(name.lower() for name in response.headers if name.lower() not in KEPT_HEADERS),
    }


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _ask(method: str, url: str, *, headers: Mapping[str, str] | None = None, body: object = None) -> requests.Response:
    """Return one answer, redirects not followed; `body` goes as JSON."""
    with requests.Session() as session:
        session.trust_env = urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}  # proxies do not know it
        session.auth = _keep_headers  # or a .netrc would speak for somebody
        try:
            return session.request(
                method, url, headers=dict(headers or {}), json=body, allow_redirects=False, timeout=TIMEOUT_S
            )
        except (requests.RequestException, ValueError) as error:
            raise UnreachableError(
                f"{redact(url)} was not reached ({type(error).__name__})", hint="Look at the address, and run it again."
            ) from error


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


# --- ComfyUI --------------------------------------------------------------------------------------

NODES = ("UNETLoader", "CLIPLoader", "VAELoader", "Flux2Scheduler", "EmptyFlux2LatentImage", "NoSuchNode")
NOT_THERE = "not-there.safetensors"


def record_comfyui(server: str) -> Recording:
    """Return what a ComfyUI server says of itself, of its loaders and of a prompt with a file it does not have.

    Raises
    ------
    UnreachableError, ServerError
        It was not reached, or is no ComfyUI.
    """
    server = server.rstrip("/")
    files: dict[str, Any] = {}
    for path in ("/system_stats", "/internal/folder_paths", *(f"/object_info/{each}" for each in NODES)):
        files[f"GET{path.replace('/', '_')}.json"] = _exchange(server, path)
    try:
        system = files["GET_system_stats.json"]["body"]["system"]
        version, torch, python = system["comfyui_version"], system["pytorch_version"], system["python_version"]
    except (KeyError, TypeError) as error:
        raise ServerError(f"{redact(server)} does not answer as ComfyUI does", hint="Look at --server.") from error
    names = {loader.field: _first_choice(files, loader.class_type, loader.input_name) for loader in LOADERS}
    default = load_manifest(DEFAULT_MANIFEST).sets[0]
    graph = build_graph(
        recipe_of(default),
        ModelNames(**{**names, "diffusion_model": NOT_THERE}),
        ImageOptions(width=64, height=64, seed=0),
    )
    began = time.monotonic()
    response = _ask("POST", f"{server}/prompt", body={"prompt": graph, "client_id": "record-contract"})
    body = _json(response)
    if response.status_code == 200:
        _ask("POST", f"{server}/queue", body={"delete": [body.get("prompt_id")]})
        raise ServerError(f"{redact(server)} accepted a prompt with {NOT_THERE}, which no server should have")
    files["missing_model_file.json"] = [
        {
            "t": round(time.monotonic() - began, 3),
            "http": "POST /prompt",
            "request": graph,
            "status": response.status_code,
            "body": body,
        }
    ]
    origin = f"Answers of a running ComfyUI {version}, torch {torch}, Python {str(python).split()[0]}."
    return Recording(f"comfyui-{version}", origin, files)


def _exchange(server: str, path: str) -> dict[str, Any]:
    response = _ask("GET", f"{server}{path}")
    return {
        "http": f"GET {path}",
        "status": response.status_code,
        "content_type": response.headers.get("Content-Type"),
        "body": _json(response),
    }


def _json(response: requests.Response) -> Any:  # noqa: ANN401 - any JSON
    try:
        return response.json()
    except ValueError as error:
        raise ServerError(f"{redact(response.url)} answers with something else than JSON") from error


def _first_choice(files: Mapping[str, Any], node_class: str, name: str) -> str:
    """Return the first file a loader offers, so that only one thing is wrong with the prompt."""
    try:
        choices = files[f"GET_object_info_{node_class}.json"]["body"][node_class]["input"]["required"][name]
        offered = choices[0] if isinstance(choices[0], list) else choices[1]["options"]
        return str(offered[0])
    except (KeyError, IndexError, TypeError):
        return NOT_THERE


def private_paths(recording: Recording, replaced: Iterable[str]) -> list[str]:
    """Return the folders of the recorded machine that nothing stands for yet."""
    texts = [*_texts(recording.files.get("GET_internal_folder_paths.json", {}).get("body", {}))]
    system = recording.files.get("GET_system_stats.json", {}).get("body", {}).get("system", {})
    texts += system.get("argv", [])
    known = [re.escape(each) for each in replaced]
    allowed = re.compile(rf"({'|'.join(known)})[\w./\\ -]*" if known else r"(?!)")
    return sorted({each for each in texts if re.search(r"(/[^/]+){2}|[A-Za-z]:\\", allowed.sub("", each))})


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


# --- the command ----------------------------------------------------------------------------------


def keep(recording: Recording, folder: Path, *, is_to_write: bool) -> int:
    """Print how a recording differs from what is kept, and keep it if that was asked for; return the exit status."""
    there = folder / recording.folder
    has_changed = False
    for name, value in recording.files.items():
        path = there / name
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        after = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        if before and _steady(json.loads(before)) == _steady(value):
            continue
        has_changed = True
        old = json.dumps(json.loads(before), indent=1, ensure_ascii=False) + "\n" if before else ""
        lines = difflib.unified_diff(
            old.splitlines(True), after.splitlines(True), f"a/{recording.folder}/{name}", f"b/{recording.folder}/{name}"
        )
        sys.stdout.write(redact("".join(lines)))
        if is_to_write:
            there.mkdir(parents=True, exist_ok=True)
            path.write_text(after, encoding="utf-8", newline="\n")
    if has_changed:
        _keep_origin(recording, there, is_to_write=is_to_write)
    return EXIT_FINDINGS if has_changed else EXIT_OK


def _keep_origin(recording: Recording, there: Path, *, is_to_write: bool) -> None:
    for name in ("README.md", "ORIGIN.md"):
        if (there / name).is_file():
            say(f"note: {recording.folder}/{name} tells where the recordings come from; to be read again")
            return
    text = f"# {recording.folder}\n\nRecorded {time.strftime('%Y-%m-%d', time.gmtime())}. {recording.origin}\n"
    say(text.rstrip())
    if is_to_write:
        (there / "ORIGIN.md").write_text(text, encoding="utf-8", newline="\n")


def _steady(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a JSON value without what differs from one second to the next."""
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if key.lower() not in VOLATILE}
    return [_steady(each) for each in value] if isinstance(value, list) else value


def work(options: argparse.Namespace) -> int:
    """Record, scrub, compare; return the exit status."""
    replaced: dict[str, str] = {}
    for each in options.replace:
        old, sign, new = each.partition("=")
        if not (old and sign and new):
            raise UsageError(f"{each!r} is no replacement", hint="Write --replace OLD=NEW.")
        replaced[old] = new
    recording: Recording = options.record(options)
    scrub = Scrubber(replaced, home=str(Path.home()), machine=platform.node())
    recording.files = {scrub(name): scrub(value) for name, value in recording.files.items()}
    recording.origin = scrub(recording.origin)
    private = private_paths(recording, replaced.values())
    if private:
        raise UsageError(
            f"folders of this server would be recorded: {', '.join(private[:8])}",
            hint="Give --replace FOLDER=/opt/ComfyUI for each folder they lie in.",
        )
    return keep(recording, options.folder, is_to_write=options.write)


def _nvml() -> Recording:
    import pynvml  # only where a GPU is asked

    return record_nvml(pynvml)


def _hub(options: argparse.Namespace) -> Recording:
    token = find_token(os.environ)
    address = endpoint(options.endpoint, os.environ)
    return record_hub(address, options.repo, options.revision, options.filename, token.value if token else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="record_contract", description="Record what the real things say.")
    subparsers = parser.add_subparsers(required=True, metavar="WHAT")
    nvml = subparsers.add_parser("nvml", help="the first GPU of this machine, through pynvml")
    nvml.set_defaults(record=lambda options: _nvml())
    hub = subparsers.add_parser("hub", help="headers of one file")
    hub.add_argument("--repo", required=True, metavar="ORG/NAME")
    hub.add_argument("--revision", required=True, metavar="COMMIT")
    hub.add_argument("--filename", required=True, metavar="PATH")
    hub.add_argument("--endpoint", metavar="URL", help="address of the Hub, else HF_ENDPOINT, else the Hub")
    hub.set_defaults(record=_hub)
    comfyui = subparsers.add_parser("comfyui", help="a running server: itself, its loaders, one refused prompt")
    comfyui.add_argument("--server", required=True, metavar="URL")
    comfyui.set_defaults(record=lambda options: record_comfyui(options.server))
    for each in (nvml, hub, comfyui):
        each.add_argument("--write", action="store_true", help="keep what the diff shows")
        each.add_argument("--folder", type=Path, default=DATA, help="where recordings are kept, default %(default)s")
        each.add_argument("--replace", action="append", default=[], metavar="OLD=NEW", help="what stands for a text")
    return run(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
