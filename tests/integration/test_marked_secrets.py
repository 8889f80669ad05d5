"""Every command with marked secrets: no mark on a stream, in a file, or with a program that does not need it.

Each command runs several times: it succeeds, it is refused, it crashes with every secret in the exception.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from provisioner.cli.main import _RUNS
from provisioner.core.models import STATE_FOLDER
from provisioner.rehearsal import hub as hub_module
from provisioner.rehearsal.faults import Status
from provisioner.rehearsal.hub import RehearsalHub
from provisioner.report.attestation import PREDICATE_TYPE, STATEMENT_TYPE
from provisioner.ui.console import utc
from tests.support import warm
from tests.support.comfy_server import free_port
from tests.support.fleets import of
from tests.support.marks import Watcher
from tests.support.oci_registry import MarkedRegistry
from tests.support.sandbox import Sandbox
from tests.support.setup_fixture import ENCODER, VAE, SetupFixture, Upstream, index_of_toys, write_tree
from tests.support.signing import make_pair
from tests.support.workflows import node, workflow

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the environment of the setup is laid out for POSIX")

VARIABLE, FILE = "the token of the variable", "the token of the file"
OF_PIPS_FILE = "the password of pip's file"
OF_A_REGISTRY = "the password of a registry"
OF_THE_KEY = "the password of the key"
# None has the shape of a Hub's token, and each is another one percent-encoded.
SECRETS = {
    VARIABLE: "mark-of-variable/1+x",
    FILE: "mark-of-file/2+x",
    "a signature of the Hub": "mark-of-hub-signature",
    "a signature of the index": "mark-of-index-signature",
    "the proxy's password": "mark-of-proxy/3+x",
    "the password of PIP_INDEX_URL": "mark-of-pip/5+x",
    OF_PIPS_FILE: "mark-of-pip-file/6+x",
    "the password of .netrc": "mark-of-netrc/7+x",
    "the password of an endpoint": "mark-of-endpoint/8+x",
    "the password of a server": "mark-of-server/9+x",
    OF_A_REGISTRY: "mark-of-registry/10+x",
    "the token of a registry": "mark-of-registry-token/11+x",
    "a signature of a registry's store": "mark-of-store-signature",
    OF_THE_KEY: "mark-of-key/10+x",
}
_PROXIES = ("http_proxy", "HTTPS_PROXY")
_INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
MAY_PASS = {
    "the proxy's password": _PROXIES,
    "the password of PIP_INDEX_URL": _INDEXES,
    OF_PIPS_FILE: _INDEXES,
}


def with_login(url: str, name: str) -> str:
    """Return an address with a user's name and a marked password."""
    return url.replace("://", f"://person:{quote(SECRETS[name], safe='')}@", 1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a command succeeds, and how it is refused; ``ground`` names what is in the test's folder."""

    words: Sequence[str] = ()
    refused: Sequence[tuple[int, Sequence[str]]]  # with the exit status of each


CASES = {
    "install": Case(
        words=("--yes", "--size", "256x256", "--registry", "{registry}/models"),
        refused=(
            (2, ["--registry", "person:{endpoint}@registry.example/models"]),
            (6, ["--only", "files", "--comfyui", "{folder}/x", "--registry", "{registry}/denied", "--registry-only"]),
            (2, ["--frobnicate", "{token}"]),
            (2, ["--package-index", "https://person:{endpoint}@mirror.example/simple"]),
            (2, ["--comfyui-source", "https://person:{endpoint}@mirror.example/x", "--set", "{token}"]),
            (6, ["--only", "files", "--comfyui", "{folder}/denied"]),
            (5, ["--only", "files", "--comfyui", "{folder}/unreachable", "--endpoint", "http://hub.example"]),
        ),
    ),
    "plan": Case(
        words=("--hosts", "--registry", "{registry}/models"),
        refused=((2, ["--endpoint", "https://person:{endpoint}@hub.example"]),),
    ),
    "repair": Case(refused=((2, ["--only", "{token}"]),)),
    "verify": Case(
        words=("--no-smoke", "--attest", "{folder}/verified.json", "--sign", "{folder}/lab.key"),
        refused=(
            (2, ["--manifest", "{token}.yaml"]),
            (2, ["--attest", "{folder}/x.json", "--sign", "{folder}/no.key"]),
            (2, ["--for", "5m", "--schedule", "daily", "--metrics", "{folder}/{token}.prom", "--no-input"]),
        ),
    ),
    "snapshot list": Case(refused=((2, ["{token}"]),)),
    "snapshot show": Case(words=("{snapshot}",), refused=((2, ["{token}"]),)),
    "snapshot export": Case(
        words=("{snapshot}", "--output", "{folder}/snapshot.zip"),
        refused=((2, ["{token}", "--output", "{folder}/x.zip"]),),
    ),
    "snapshot restore": Case(words=("{snapshot}", "--yes", "--size", "256x256"), refused=((2, ["{token}"]),)),
    "smoke-test": Case(
        words=("--size", "256x256"), refused=((2, ["--server", "http://person:{server}@127.0.0.1:8188"]),)
    ),
    "diagnose": Case(
        words=("--size", "256x256"),
        refused=((2, ["--comfyui-args", "{token}"]), (2, ["--comfyui-args", "--port {token}"])),
    ),
    "start": Case(
        words=("--no-browser", "--port", "{port}", "--pass-env", "STAND_IN_LIFE_S"),
        refused=((2, ["--no-browser", "{token}"]), (2, ["--port", "{token}"])),
    ),
    "detect": Case(
        refused=(
            (2, ["--torch-index", "http://person:{endpoint}@mirror.example/{token}"]),
            (2, ["--torch-index", "https://person:{endpoint}@mirror.example/{token}"]),
        )
    ),
    "completion": Case(words=("bash",), refused=((2, ["{token}"]),)),
    "manifest list": Case(refused=((2, ["{token}"]),)),
    "manifest show": Case(words=("{manifest}",), refused=((2, ["{folder}/signed.yaml"]),)),
    "manifest check": Case(words=("{manifest}",), refused=((2, ["{folder}/signed.yaml", "{token}"]),)),
    "manifest from-workflow": Case(
        words=("{folder}/flow.json", "--offline", "--output", "{folder}/made.yaml"),
        refused=(
            (2, ["{folder}/{token}"]),
            (2, ["https://person:{endpoint}@example.com/a.json"]),
            (2, ["{folder}/flow.json", "--digest", "{token}"]),
            (2, ["{folder}/flow.json", "--github", "https://person:{endpoint}@github.example"]),
            (2, ["{folder}/flow.json", "--node-registry", "https://person:{endpoint}@registry.example"]),
            (2, ["{folder}/flow.json", "--node-version", "{token}"]),
            (5, ["https://example.com/a.json?token={token}", "--offline"]),
        ),
    ),
    "manifest lock": Case(
        words=("--output", "{folder}/locked.yaml", "--sign", "{folder}/lab.key"),
        refused=((2, ["--frobnicate", "{token}"]), (2, ["--output", "{folder}/x.yaml", "--sign", "{folder}/no.key"])),
    ),
    "bundle create": Case(
        words=("{folder}/bundle", "--yes", "--no-comfyui"),
        refused=(
            (2, ["{folder}/bundle-2", "--set", "{token}"]),
            (6, ["{folder}/bundle-2", "--yes", "--no-comfyui"]),
            (2, ["{folder}/bundle-2", "--comfyui-source", "{token}", "--frobnicate"]),
            (2, ["oci://me:{token}@127.0.0.1:9/klein:v1"]),
            (5, ["oci://127.0.0.1:9/klein:v1", "--yes", "--no-comfyui"]),
        ),
    ),
    "bundle add": Case(
        words=("{folder}/bundle", "--yes", "--no-comfyui"), refused=((2, ["{folder}/{token}", "--yes"]),)
    ),
    "bundle verify": Case(
        words=("{folder}/bundle",), refused=((2, ["{folder}/{token}"]), (2, ["oci://me:{token}@127.0.0.1:9/klein:v1"]))
    ),
    "manifest accept": Case(
        words=("{folder}/accepted.yaml", "--verify-with", "{folder}/lab.pub"),
        refused=((2, ["{folder}/accepted.yaml", "--verify-with", "{folder}/lab.key"]), (2, ["{token}"])),
    ),
    "attestation": Case(
        words=("{folder}/attested.json", "--verify-with", "{folder}/lab.pub"),
        refused=((7, ["{folder}/accepted.yaml.sig", "--verify-with", "{folder}/lab.pub"]), (2, ["{token}"])),
    ),
    "seed": Case(
        words=("--listen", "127.0.0.1:{port}", "--torrent", "{folder}/set.torrent", "--for", "1s"),
        refused=(
            (2, ["--listen", "{token}"]),
            (4, ["--listen", "127.0.0.1:{port}", "--torrent", "{folder}/no/{token}"]),
        ),
    ),
    "aside list": Case(refused=((2, ["--manifest", "{token}"]),)),
    "aside restore": Case(words=("{backup}",), refused=((2, ["{token}"]),)),
    "aside clear": Case(words=("--yes",), refused=((2, ["{token}"]),)),
    "report": Case(
        words=("--output", "{folder}/page.html"),
        refused=((4, ["--output", "{folder}/no/{token}"]),),
    ),
    "fleet report": Case(
        words=("{documents}", "--output", "{folder}/fleet.html"),
        refused=((2, ["{folder}/{token}"]), (2, ["{documents}", "--stale", "{token}"])),
    ),
    "doctor": Case(words=("--output", "{folder}/bug.zip"), refused=((4, ["--output", "{folder}/no/{token}"]),)),
    "rehearse": Case(words=("--no-image",), refused=((2, ["--torch-index", "http://a:{endpoint}@x.example"]),)),
    "uninstall": Case(words=("--yes",), refused=((2, ["--only", "{token}"]),)),
}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


class Ground:
    """A whole setup whose every secret is marked."""

    def __init__(self, setup: SetupFixture) -> None:
        self.setup = setup
        self.folder = setup.sandbox.folder
        self.signature = SECRETS["a signature of the Hub"]
        setup.index.query = f"?Signature={SECRETS['a signature of the index']}"
        index, home = setup.index.url, setup.sandbox.home
        login = ("person", SECRETS[OF_A_REGISTRY])
        self.registry = MarkedRegistry(
            {ENCODER.sha256: ENCODER.data},  # the other files come from the Hub
            login=login,
            token=SECRETS["the token of a registry"],
            signature=SECRETS["a signature of a registry's store"],
        )
        saved = base64.b64encode(":".join(login).encode()).decode()
        self.torch_index = index.replace("127.0.0.1", "localhost")  # the host of the login in .netrc
        proxy = with_login("http://127.0.0.1:9", "the proxy's password")
        mine = {
            "home/hf/token": SECRETS[FILE],
            "pip.conf": f"[global]\nextra-index-url = {with_login(index, OF_PIPS_FILE)}\n",
            "home/docker/config.json": json.dumps({"auths": {self.registry.host: {"auth": saved}}}),
            "home/.netrc": f"machine localhost login person password {SECRETS['the password of .netrc']}\n",
        }
        write_tree(self.folder, mine | {"signed.yaml": self._signed_manifest(), "flow.json": self._workflow()})
        self._write_keys()
        (home / ".netrc").chmod(0o600)
        (self.folder / "tmp").mkdir()
        self.watcher = Watcher(self.folder, SECRETS)
        self.watcher.own |= {self.folder / name for name in (*mine, "signed.yaml", "flow.json")} | {
            self.folder / "lab.key"
        }
        setup.sandbox.environ |= {
            "HF_TOKEN": SECRETS[VARIABLE],
            "PIP_INDEX_URL": with_login(index, "the password of PIP_INDEX_URL"),
            "PIP_CONFIG_FILE": str(self.folder / "pip.conf"),
            **dict.fromkeys(_PROXIES, proxy),
            "NO_PROXY": "127.0.0.1,localhost",
            "DOCKER_CONFIG": str(home / "docker"),
            "TMPDIR": str(self.folder / "tmp"),
            "KLEIN_SPY_LOG": str(self.watcher.log),
            "STAND_IN_LIFE_S": "5",  # of a ComfyUI that is told so: `start` runs as long as it does
        }

    def crash(self, *names: str) -> str:
        """Return code that raises what nobody expects, with these tokens and every kind of secret in its text."""
        proxy, signed = self.setup.sandbox.environ["http_proxy"], f"/blob/ab12?Expires=1&Signature={self.signature}"
        tokens = [SECRETS[name] for name in names]
        said = [
            *(f"{{'Authorization': 'Bearer {token}'}}; {token}; {quote(token, safe='')}" for token in tokens),
            f"Cannot connect to {proxy}",
            f"Max retries exceeded with url: {signed}",
            f"https://cdn.example{signed}",
            f"the password {SECRETS[OF_THE_KEY]} is wrong",
            *self._login("the proxy's password"),
            *self._login("the password of PIP_INDEX_URL"),
            *self._login(OF_A_REGISTRY),
        ]
        return f"raise RuntimeError({'; '.join(said)!r})"

    def _login(self, name: str) -> list[str]:
        basic = base64.b64encode(f"person:{SECRETS[name]}".encode()).decode()
        return [f"{{'Proxy-Authorization': 'Basic {basic}'}}", basic, f"('person', {SECRETS[name]!r})"]

    def _signed_manifest(self) -> str:
        document = json.loads(self.setup.sandbox.manifest.read_text(encoding="utf-8"))
        url = f"https://cdn.example/x.safetensors?X-Amz-Signature={self.signature}"
        document["artifacts"][0]["sources"] = [{"url": url}, {"url": with_login(url, "the password of an endpoint")}]
        return json.dumps(document)

    def _workflow(self) -> str:
        """Return a workflow whose authors left a signature and a password in its links; one file of it is known."""
        known = "https://huggingface.co/Comfy-Org/flux2-dev/resolve/main/split_files/vae/flux2-vae.safetensors"
        url = f"https://cdn.example/flux2-vae.safetensors?X-Amz-Signature={self.signature}"
        links = [known, url, with_login(url, "the password of an endpoint")]
        named = [("flux2-vae.safetensors", link, "vae") for link in links]
        return workflow(node(1, "VAELoader", "flux2-vae.safetensors", models=named), node(2, "Note", url)).decode()

    def _write_keys(self) -> None:
        """Write a key whose text is a mark, too, one that its password does not open, and a signed lock."""
        marked = make_pair(self.folder, password=SECRETS[OF_THE_KEY])
        SECRETS["the text of the key"] = marked.private.read_text(encoding="ascii").splitlines()[2]
        make_pair(self.folder, "no", password="another")
        document = json.loads(self.setup.sandbox.manifest.read_text(encoding="utf-8"))
        document["lock"] = {"manifest_sha256": "ab" * 32, "locked_on": "2026-11-27", "version": 1}
        lock = self.folder / "accepted.yaml"
        lock.write_text(json.dumps(document), encoding="utf-8")
        marked.sign(lock, password=SECRETS[OF_THE_KEY])
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "timeVerified": "2026-11-27T10:00:00Z",
                "verificationResult": "PASSED",
                "manifest": {"id": "a", "set": "b", "sha256": "ab" * 32},
                "machine": {"gpus": []},
            },
        }
        attested = self.folder / "attested.json"
        marked.sign_payload(attested, json.dumps(statement).encode(), password=SECRETS[OF_THE_KEY]).replace(attested)
        self.setup.sandbox.environ["KLEIN_SETUP_KEY_PASSWORD"] = SECRETS[OF_THE_KEY]

    @property
    def backup(self) -> str:
        """The name of a backup, as ``backups restore`` takes it."""
        folder = self.setup.tree / "models" / STATE_FOLDER / "aside"
        found = sorted(path for path in folder.glob("*/*/*") if path.is_file())
        return found[0].relative_to(folder).as_posix() if found else "none"

    @property
    def snapshot(self) -> str:
        """The name of a snapshot."""
        folder = self.setup.sandbox.home / "data" / "klein-setup" / "snapshots"
        return next((path.stem for path in sorted(folder.glob("*.json"))), "none")

    def prepare(self, command: str) -> None:
        """Bring about what a command needs, where the commands before it were not run."""
        if command in {"install", "bundle create"}:
            return
        if command == "seed":
            pytest.importorskip("libtorrent")
        if command.startswith("bundle") and not (self.folder / "bundle" / "index.json").exists():
            assert self.run("bundle create", CASES["bundle create"].words).status == 0
        if command == "fleet report":  # of a machine that did not know our token; every run here knows that of the file
            card = f"A card of {SECRETS[FILE]}"
            document = of("lab-1", at=utc(time.time()), card=card)
            write_tree(self.folder, {"documents/lab-1.json": json.dumps(document)})
            self.watcher.own.add(self.folder / "documents/lab-1.json")
            return
        if not self.setup.environment.exists():
            assert self.run("install", CASES["install"].words).status == 0
        if command == "repair" or (command.startswith("aside") and self.backup == "none"):
            path = self.setup.sandbox.path(VAE)
            path.write_bytes(bytes(len(VAE.data)))
        if command.startswith("aside") and self.backup == "none":
            assert self.run("repair", ()).status == 0

    def arguments(self, command: str, words: Sequence[str], token: str) -> list[str]:
        """Return the command line: the words with what is meant put in, and the setup's own options."""
        values = {
            "token": SECRETS[token],
            "endpoint": quote(SECRETS["the password of an endpoint"], safe=""),
            "server": quote(SECRETS["the password of a server"], safe=""),
            "folder": str(self.folder),
            "documents": str(self.folder / "documents"),
            "manifest": str(self.setup.sandbox.manifest),
            "port": str(free_port()),
            "registry": self.registry.host,
            "backup": self.backup,
            "snapshot": self.snapshot,
        }
        given = [*command.split(), *(word.format(**values) for word in words)]
        if command in {
            "completion",
            "detect",
            "fleet report",
            "report",
            "rehearse",
            "manifest list",
            "manifest show",
            "manifest check",
            "manifest from-workflow",
            "bundle verify",
            "manifest accept",
            "attestation",
            "snapshot list",
            "snapshot show",
            "snapshot export",
        }:
            return given
        if command in {"bundle create", "bundle add"}:
            setup = self.setup.sandbox
            return [*given, "--manifest", str(setup.manifest), "--endpoint", setup.hub.endpoint, "--send-token"]
        usual = iter(self.setup.arguments(*command.split())[len(command.split()) :])
        for option in usual:
            value = [] if option == "--send-token" else [next(usual)]
            if option not in given:
                given += [option, *(self.torch_index if each == self.setup.index.url else each for each in value)]
        return given

    def run(self, command: str, words: Sequence[str], *, at_end: str | None = None, token: str = VARIABLE) -> Done:
        """Run a command to its end; `at_end` is code of the command, ``before:`` or ``after:`` what it does."""
        environ = dict(self.setup.sandbox.environ)
        if token != VARIABLE:
            del environ["HF_TOKEN"]
        if at_end is not None:
            environ["KLEIN_SPY_CODE"] = at_end
        script = [str(self.watcher.script), *(str(self.folder / name) for name in ("driver.py", "probe.py"))]
        given = [*script, json.dumps(self.setup.upstream.release), *self.arguments(command, words, token)]
        with tempfile.TemporaryFile() as errors:  # outside of what is looked through
            process = warm.start(given, cwd=self.folder, env=environ, stdout=None, stderr=errors)
            said, _ = process.communicate(timeout=120)
            errors.seek(0)
            return Done(process.wait(), said, errors.read().decode())

    def leaks(self, *runs: Done) -> list[str]:
        """Return where a mark is that must not be there."""
        streams = {f"stdout {number}": done.stdout for number, done in enumerate(runs)}
        streams |= {f"stderr {number}": done.stderr for number, done in enumerate(runs)}
        return self.watcher.leaks(streams, MAY_PASS)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Make the setup; its hub signs with marks."""
    numbers = count()
    folder = tmp_path_factory.mktemp("marked")
    tokens = [SECRETS[VARIABLE], SECRETS[FILE]]
    with pytest.MonkeyPatch.context() as patch:
        made = SimpleNamespace(token_urlsafe=lambda _: f"{SECRETS['a signature of the Hub']}-{next(numbers)}")
        patch.setattr(hub_module, "secrets", made)
        index = index_of_toys()
        with RehearsalHub(tokens=tokens) as hub:
            sandbox = Sandbox(folder / "sandbox", hub)
            ground = Ground(SetupFixture(sandbox, index, Upstream(folder / "upstream" / "ComfyUI")))
            yield ground
            assert hub.violations == []
            ground.registry.close()
        index.close()


def test_every_command_of_the_program_has_its_case() -> None:
    assert set(CASES) == set(_RUNS)


@pytest.mark.parametrize("command", CASES)
def test_no_mark_gets_out(ground: Ground, command: str) -> None:
    case = CASES[command]
    ground.prepare(command)
    done = ground.run(command, [*case.words, "--verbose"])
    assert (done.status, ground.leaks(done)) == (0, []), done.stderr
    if command == "install":
        assert_they_were_used(ground)

    echo = f"{SECRETS[VARIABLE]} {SECRETS[FILE]} may not read https://cdn.example/x?Signature={ground.signature}"
    ground.setup.sandbox.hub.fault(Status(403, (("X-Error-Message", echo),), echo.encode()), on="head", times=None)
    with ThreadPoolExecutor(2) as pool:
        refused = [
            pool.submit(ground.run, command, [*words, "--json", "--verbose"], token=token)
            for (_, words), token in zip(case.refused, cycle([FILE, VARIABLE]), strict=False)
        ]
        ended = [each.result() for each in refused]
    ground.setup.sandbox.hub.clear_faults()
    assert ground.leaks(*ended) == []
    assert [each.status for each in ended] == [status for status, _ in case.refused]

    crash = ground.crash(VARIABLE, FILE)
    moment = "before" if command == "rehearse" else "after"  # it takes seconds, and leaves nothing behind
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(ground.run, command, [*case.words, "--verbose"], at_end=f"before:{crash}"),
            pool.submit(
                ground.run, command, [*case.words, "--json=events"], at_end=f"{moment}:{ground.crash(FILE)}", token=FILE
            ),
        ]
        crashed = [each.result() for each in runs]
    assert ground.leaks(*crashed) == []
    assert [each.status for each in crashed] == [70, 70], [each.stderr for each in crashed]
    assert "Cannot connect to" in crashed[0].stderr
    assert "Cannot connect to" in crashed[1].stdout


def assert_they_were_used(ground: Ground) -> None:
    """Assert that the secrets were where they were needed: what nobody uses leaks nowhere."""
    sandbox, started = ground.setup.sandbox, ground.watcher.started
    assert {each.authorization for each in sandbox.heads()} == {f"Bearer {SECRETS[VARIABLE]}"}
    assert any(path.endswith(ground.setup.index.query) for path in ground.setup.index.requests)
    for name, variable in (
        ("the password of PIP_INDEX_URL", "PIP_INDEX_URL"),
        (OF_PIPS_FILE, "PIP_EXTRA_INDEX_URL"),
        ("the proxy's password", "http_proxy"),
    ):
        assert any(quote(SECRETS[name], safe="") in each["env"].get(variable, "") for each in started), name
    ours = {
        name: "Basic " + base64.b64encode(f"person:{SECRETS[name]}".encode()).decode()
        for name in ("the password of .netrc", "the password of PIP_INDEX_URL")
    }
    of_wheels = {login for path, login in ground.setup.index.asked if ".whl?" in path and ".metadata" not in path}
    assert of_wheels == set(ours.values())  # each wheel is asked for with the password of its own index
    asked = ground.registry.seen
    assert ("/token", ground.registry.login) in asked
    assert (f"/v2/models/blobs/sha256:{ENCODER.sha256}", f"Bearer {ground.registry.token}") in asked
    assert (f"/store/sha256:{ENCODER.sha256}", None) in asked
    assert {login for path, login in asked if path.startswith("/store/")} == {None}
    programs = {Path(each["args"][0]).name for each in started}
    assert {"git", "python"} <= programs
    assert any("main.py" in word for each in started for word in each["args"]), "ComfyUI"


def test_the_login_of_a_package_index_comes_from_netrc_and_gets_nowhere_else(
    ground: Ground,
) -> None:
    ground.prepare("plan")
    index = ground.setup.index
    shutil.rmtree(ground.setup.environment, ignore_errors=True)
    shutil.rmtree(ground.setup.sandbox.home / "cache", ignore_errors=True)  # with every wheel
    number = len(index.asked)
    words = ["--package-index", index.url.replace("127.0.0.1", "localhost"), "--yes", "--only", "environment"]
    done = ground.run("install", [*words, "--verbose"])
    assert (done.status, ground.leaks(done)) == (0, []), done.stderr
    secret = SECRETS["the password of .netrc"]
    login = "Basic " + base64.b64encode(f"person:{secret}".encode()).decode()
    asked = {path.partition("?")[0]: user for path, user in index.asked[number:] if "einops" in path}
    assert set(asked.values()) == {login}
    assert any(path.endswith(".whl") for path in asked)


def test_a_mark_that_gets_out_is_found(ground: Ground) -> None:
    token = SECRETS[VARIABLE]
    code = """
import base64, os, pathlib, subprocess, sys, urllib.parse
token = os.environ["HF_TOKEN"]
print(base64.b64encode(b"person:" + token.encode()).decode(), flush=True)
print("in", urllib.parse.quote(token, safe=""), file=sys.stderr)
pathlib.Path(os.environ["TMPDIR"], "kept").write_text(token)
subprocess.run([sys.executable, "-c", "", token], env={"A": "nothing"})
subprocess.run([sys.executable, "-c", ""], env={"B": token})
subprocess.run([sys.executable, "-c", ""])
os._exit(0)
"""
    done = ground.run("manifest list", (), at_end=f"before:{code}")
    python = Path(sys.executable).name
    kept = ground.folder / "tmp" / "kept"
    assert ground.leaks(done) == [
        f"{VARIABLE} is on stdout 0",
        f"{VARIABLE} is on stderr 0",
        f"{VARIABLE} is in {kept}",
        f"{VARIABLE} is in the arguments of {[sys.executable, '-c', '', token]}",
        f"{VARIABLE} is in the variable B of {python}",
        f"{VARIABLE} is in the variable HF_TOKEN of {python}",
        f"{OF_THE_KEY} is in the variable KLEIN_SETUP_KEY_PASSWORD of {python}",
    ]
    assert ground.leaks(done)[2:] == []
    kept.unlink()
