"""Signed locks with the real command: what is accepted, and every attack that must not be.

The attacks are those that The Update Framework names: an old lock (rollback), an old lock that never changes (freeze),
parts of several locks (mix-and-match), and plain forgery.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from provisioner.signing.lock_statement import lock_payload
from tests.support.sandbox import Completed, Sandbox, tensors
from tests.support.signing import KeyPair, make_pair

PASSWORD = "correct horse battery"


def day(days: int) -> str:
    return (datetime.now(tz=timezone.utc).date() + timedelta(days=days)).isoformat()


@dataclass
class Lab:
    """A lock of an installed tree, which its test signs, changes and verifies."""

    sandbox: Sandbox
    pair: KeyPair
    lock: Path

    def publish(self, version: int, *, expires: str | None = None, note: str = "", path: Path | None = None) -> Path:
        """Write the lock anew with that version, and sign it."""
        path = path or self.lock
        text = re.sub(r"(?m)^  (version|expires): .*\n", "", self.lock.read_text(encoding="utf-8"))
        entry = f"  version: {version}\n" + ("" if expires is None else f"  expires: '{expires}'\n")
        text = re.sub(r"(?m)^(  locked_on: .*\n)", rf"\g<1>{entry}", text)
        path.write_text(re.sub("(?m)^title: .*", f"title: Files {note}", text), encoding="utf-8")
        self.pair.sign(path)
        return path

    def verify(self, *words: str | Path, command: str = "verify") -> Completed:
        """Verify with this lock and key."""
        quick = ("--quick",) if command == "verify" else ()
        given = (command, *quick, "--json", "--manifest", self.lock, "--verify-with", self.pair.public)
        return self.sandbox.run(*given, *words)

    def refused(self, code: str, *, status: int = 7) -> str:
        """Assert that the lock is refused; return the error's sentence and hint."""
        done = self.verify()
        assert (done.returncode, done.codes) == (status, [code]), done.said
        (error,) = done.json["errors"]
        return f"{error['message']} {error['hint']}"

    @property
    def record(self) -> Path:
        """What was accepted so far."""
        return self.sandbox.state / "accepted-locks.json"

    def accepted(self) -> list[int]:
        """The versions in it."""
        return [each["version"] for each in json.loads(self.record.read_text(encoding="utf-8"))["locks"]]


@pytest.fixture
def lab(sandbox: Sandbox) -> Lab:
    """A lock that the real command wrote and signed."""
    sandbox.publish(tensors(2000))
    assert sandbox.install("--only", "files").returncode == 0
    made = Lab(sandbox, make_pair(sandbox.folder), sandbox.folder / "lab.yaml")
    done = sandbox.run("manifest", "lock", "--output", made.lock, "--sign", made.pair.private, "--expires", "90d")
    assert done.returncode == 0, done.said
    assert f"lab.yaml.sig signs version 1, good until {day(90)}" in done.said
    return made


# --- what is accepted --------------------------------------------------------------------------


def test_a_signed_lock_is_accepted_by_every_command_that_reads_it(lab: Lab) -> None:
    done = lab.verify()
    assert done.returncode == 0
    signed = done.json["details"]["signed_lock"]
    key_id = json.loads(lab.record.read_text())["locks"][0]["key_id"]
    assert signed == {"name": "lab.yaml", "version": 1, "expires": day(90), "key_id": key_id}
    assert lab.accepted() == [1]
    for command in ("plan", "repair", "install"):
        only = () if command == "plan" else ("--yes",)
        assert lab.verify("--only", "files", *only, command=command).returncode == 0
    checked = lab.sandbox.run("manifest", "check", lab.lock, "--verify-with", lab.pair.public)
    assert checked.returncode == 0, checked.said


def test_every_command_refuses_an_unsigned_lock_before_anything_else(lab: Lab) -> None:
    lab.lock.with_name("lab.yaml.sig").unlink()
    shutil.rmtree(lab.sandbox.tree)
    with_key = ("--verify-with", lab.pair.public, "--json")
    targeted = ("--manifest", lab.lock, "--comfyui", lab.sandbox.tree, *with_key)
    commands: list[tuple[str | Path, ...]] = [
        *((each, *targeted) for each in ("install", "plan", "verify", "repair", "smoke-test", "start", "uninstall")),
        ("backups", "list", *targeted),
        ("manifest", "lock", "--output", "other.yaml", *targeted),
        *(("manifest", each, lab.lock, *with_key) for each in ("check", "show", "accept")),
    ]
    for done in lab.sandbox.run_each(commands):
        assert (done.returncode, done.codes) == (7, ["lock-signature"]), done.arguments
        assert "is not signed: there is no lab.yaml.sig beside it" in done.json["errors"][0]["message"]
    assert not lab.sandbox.tree.exists()
    assert not lab.record.exists()


@pytest.mark.skipif(os.name == "nt", reason="the folders of the user are laid out for POSIX")
def test_the_key_may_stand_in_the_settings_or_the_environment(lab: Lab) -> None:
    lab.lock.with_name("lab.yaml.sig").unlink()
    words = ("verify", "--quick", "--json", "--manifest", lab.lock)
    assert lab.sandbox.run(*words).returncode == 0
    refused = lab.sandbox.run(*words, env={"KLEIN_SETUP_VERIFY_WITH": str(lab.pair.public)})
    assert refused.codes == ["lock-signature"]
    settings = Path(lab.sandbox.environ["XDG_CONFIG_HOME"]) / "klein-setup" / "klein-setup.toml"
    lab.sandbox.plant(settings, f'verify-with = "{lab.pair.public}"\n'.encode())
    assert lab.sandbox.run(*words).codes == ["lock-signature"]
    lab.sandbox.publish(tensors(2000))
    shipped = lab.sandbox.run("verify", "--quick", "--json", "--manifest", "flux2-klein-4b")
    assert shipped.codes == ["lock-signature"]
    assert "comes with klein-setup and is no signed lock" in shipped.said


def test_the_next_command_that_is_shown_asks_for_the_signature_too(lab: Lab) -> None:
    lab.sandbox.path().unlink()
    done = lab.verify()
    assert done.returncode == 1
    assert f"--verify-with {lab.pair.public}" in done.json["next_command"]


# --- rollback ----------------------------------------------------------------------------------


def test_an_older_lock_is_refused_until_a_person_accepts_it(lab: Lab) -> None:
    lab.publish(5)
    assert lab.verify().returncode == 0
    lab.publish(4)
    said = lab.refused("lock-rollback")
    assert "is version 4, and version 5 was accepted here on" in said
    check = ("manifest", "check", lab.lock, "--verify-with", lab.pair.public, "--json")
    assert lab.sandbox.run(*check).codes == ["lock-rollback"]
    accepted = lab.sandbox.run("manifest", "accept", lab.lock, "--verify-with", lab.pair.public)
    assert accepted.returncode == 0, accepted.said
    assert "version 4 is accepted on this machine from now on" in accepted.said
    assert lab.verify().returncode == 0
    assert lab.accepted() == [4]


def test_an_older_lock_is_refused_also_in_another_folder(lab: Lab) -> None:
    lab.publish(5)
    assert lab.verify().returncode == 0
    lab.publish(4)
    elsewhere = lab.sandbox.folder / "elsewhere"
    elsewhere.mkdir()
    for each in (lab.lock, lab.lock.with_name("lab.yaml.sig")):
        shutil.move(each, elsewhere / each.name)
    lab.lock = elsewhere / "lab.yaml"
    lab.refused("lock-rollback")


def test_another_lock_of_the_same_version_is_refused(lab: Lab) -> None:
    lab.publish(5)
    assert lab.verify().returncode == 0
    lab.publish(5, note="of somebody else")
    assert "is version 5 with other content" in lab.refused("lock-rollback")


def test_each_name_and_each_key_has_versions_of_its_own(lab: Lab) -> None:
    lab.publish(5)
    assert lab.verify().returncode == 0
    lab.publish(2, path=lab.sandbox.folder / "other.yaml")
    lab.lock = lab.sandbox.folder / "other.yaml"
    assert lab.verify().returncode == 0
    lab.pair = make_pair(lab.sandbox.folder, "new")
    lab.publish(1)
    assert lab.verify().returncode == 0
    assert sorted(lab.accepted()) == [1, 2, 5]


def test_a_newer_lock_is_accepted_and_looking_at_it_records_nothing(lab: Lab) -> None:
    assert lab.verify().returncode == 0
    lab.publish(2)
    check = ("manifest", "check", lab.lock, "--verify-with", lab.pair.public)
    assert lab.sandbox.run(*check).returncode == 0
    assert lab.accepted() == [1]
    assert lab.verify().returncode == 0
    assert lab.accepted() == [2]


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 2, "locks": []}', b'{"schema_version": 1}'])
def test_a_damaged_record_is_an_error_and_not_a_machine_without_a_past(lab: Lab, content: bytes) -> None:
    lab.sandbox.plant(lab.record, content)
    assert "cannot be read or is damaged" in lab.refused("unreadable", status=4)
    accepted = lab.sandbox.run("manifest", "accept", lab.lock, "--verify-with", lab.pair.public)
    assert accepted.returncode == 0, accepted.said
    assert lab.verify().returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="the folders of the user are laid out for POSIX")
def test_a_record_that_cannot_be_written_is_an_error(lab: Lab) -> None:
    lab.sandbox.plant(lab.record.parent / "accepted-locks.json" / "in the way", b"")
    assert "cannot be read or is damaged" in lab.refused("unreadable", status=4)
    shutil.rmtree(lab.record)
    lab.sandbox.environ["XDG_STATE_HOME"] = str(lab.sandbox.manifest / "no folder")
    assert "Without it an older lock could be offered later" in lab.refused("storage", status=4)


# --- freeze ------------------------------------------------------------------------------------


def test_an_expired_lock_is_refused_although_nothing_newer_was_seen(lab: Lab) -> None:
    lab.publish(1, expires=day(-1))
    said = lab.refused("lock-expired")
    assert f"its last day was {day(-1)}, and this machine's clock says {day(0)} (UTC)" in said
    accepted = lab.sandbox.run("manifest", "accept", lab.lock, "--verify-with", lab.pair.public, "--json")
    assert accepted.codes == ["lock-expired"]
    lab.publish(1, expires=day(0))
    assert lab.verify().returncode == 0


def test_a_machine_whose_clock_is_behind_cannot_say_that_nothing_expired(lab: Lab) -> None:
    text = lab.lock.read_text(encoding="utf-8")
    lab.lock.write_text(re.sub("locked_on: .*", f"locked_on: '{day(30)}'", text), encoding="utf-8")
    lab.pair.sign(lab.lock)
    said = lab.refused("lock-expired")
    assert f"was locked on {day(30)} by the clock of the machine that made it" in said
    assert f"this machine's clock says {day(0)}" in said


# --- mix-and-match, forgery --------------------------------------------------------------------


def test_locks_and_signatures_of_one_set_do_not_go_crosswise(lab: Lab) -> None:
    """Two locks of one key: neither passes with the other's signature, nor under the other's name."""
    other = lab.publish(1, note="other", path=lab.sandbox.folder / "other.yaml")
    mine = [path.read_bytes() for path in (lab.lock, lab.lock.with_name("lab.yaml.sig"))]
    lab.lock.with_name("lab.yaml.sig").write_bytes(other.with_name("other.yaml.sig").read_bytes())
    assert "is not the file that was signed" in lab.refused("lock-signature")
    lab.lock.write_bytes(other.read_bytes())
    assert "was signed as 'other.yaml': it is another lock under this name" in lab.refused("lock-signature")
    lab.lock.write_bytes(mine[0])
    lab.lock.with_name("lab.yaml.sig").write_bytes(mine[1])
    assert lab.verify().returncode == 0


def test_the_signature_of_another_version_is_refused(lab: Lab) -> None:
    old = lab.lock.with_name("lab.yaml.sig").read_bytes()
    lab.publish(2)
    lab.lock.with_name("lab.yaml.sig").write_bytes(old)
    assert "is not the file that was signed" in lab.refused("lock-signature")


def test_one_changed_byte_is_refused(lab: Lab) -> None:
    lab.lock.write_bytes(lab.lock.read_bytes() + b"\n")
    assert "is not the file that was signed" in lab.refused("lock-signature")


def test_a_byte_order_mark_is_a_changed_byte(lab: Lab) -> None:
    lab.lock.write_bytes(b"\xef\xbb\xbf" + lab.lock.read_bytes())
    lab.refused("lock-signature")


def test_a_forged_signature_is_refused(lab: Lab) -> None:
    forger = make_pair(lab.sandbox.folder, "forger")
    forger.sign(lab.lock)
    assert "is signed with another key" in lab.refused("lock-signature")
    bundle = lab.lock.with_name("lab.yaml.sig")
    document = json.loads(bundle.read_text())
    document["verificationMaterial"]["publicKey"]["hint"] = None
    bundle.write_text(json.dumps(document))
    assert "is wrong: the key did not sign this" in lab.refused("lock-signature")


def test_a_signature_that_is_cut_off_is_refused(lab: Lab) -> None:
    bundle = lab.lock.with_name("lab.yaml.sig")
    bundle.write_bytes(bundle.read_bytes()[:-20])
    assert "lab.yaml.sig is damaged" in lab.refused("lock-signature")
    bundle.unlink()
    bundle.mkdir()
    assert "is not a regular file" in lab.refused("lock-signature")


def test_a_signature_of_something_else_than_a_lock_is_refused(lab: Lab) -> None:
    statement = json.loads(lock_payload("lab.yaml", lab.lock.read_bytes()))
    lab.pair.sign_payload(lab.lock, json.dumps(statement | {"predicateType": "https://example.org/other"}).encode())
    assert "is not a lock" in lab.refused("lock-signature")


def test_a_signed_manifest_without_lock_or_version_is_refused(lab: Lab) -> None:
    lab.lock = lab.sandbox.manifest
    lab.pair.sign(lab.lock)
    assert "it is not a lock" in lab.refused("lock-signature")


@pytest.mark.parametrize("version", ["0", "-1", "2147483648", "1.5", "01", "'7'"])
def test_a_version_that_is_none_is_refused_although_it_is_signed(lab: Lab, version: str) -> None:
    text = lab.lock.read_text(encoding="utf-8").replace("version: 1\n", f"version: {version}\n")
    lab.lock.write_text(text, encoding="utf-8")
    lab.pair.sign(lab.lock)
    assert "version" in lab.refused("manifest-invalid", status=2)
    assert not lab.record.exists()


_COUNT_OPENINGS = """
import sys
opened = []
sys.addaudithook(lambda event, values: event == "open" and opened.append(str(values[0])))
from provisioner.cli.main import main
status = main(sys.argv[1:])
print("opened", sum(each.endswith("lab.yaml") for each in opened), "times")
sys.exit(status)
"""


def test_the_bytes_that_are_verified_are_those_that_are_parsed(lab: Lab) -> None:
    """The file is opened once: nobody can exchange it between the two."""
    words = [
        "verify",
        "--quick",
        "--manifest",
        lab.lock,
        "--verify-with",
        lab.pair.public,
        "--comfyui",
        lab.sandbox.tree,
    ]
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_OPENINGS, *map(str, words)],
        env=lab.sandbox.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.endswith("opened 1 times\n"), done.stdout


def test_runs_that_accept_at_the_same_time_forget_nothing(lab: Lab) -> None:
    locks = [lab.publish(number, path=lab.sandbox.folder / f"lab-{number}.yaml") for number in range(1, 5)]
    running = [lab.sandbox.start("manifest", "accept", each, "--verify-with", lab.pair.public) for each in locks]
    assert [each.wait().returncode for each in running] == [0] * 4
    assert sorted(lab.accepted()) == [1, 2, 3, 4]


# --- keys and options --------------------------------------------------------------------------


def test_a_key_that_cannot_be_used_is_named_before_anything_is_read(lab: Lab) -> None:
    for key, complaint in (
        (lab.pair.private, "is a private key; expected the public one"),
        (lab.sandbox.folder / "none.pub", "cannot be read: No such file"),
    ):
        done = lab.sandbox.run("verify", "--json", "--manifest", "none.yaml", "--verify-with", key)
        assert (done.returncode, done.codes) == (2, ["signing-key"])
        assert complaint in done.said


def test_versions_grow_by_themselves_or_as_told(lab: Lab) -> None:
    lock = ("manifest", "lock", "--output", lab.lock, "--sign", lab.pair.private)
    for words, version in ((), 2), (("--lock-version", "40"), 40), ((), 41):
        done = lab.sandbox.run(*lock, *words)
        assert f"signs version {version}, good for ever, as --expires was not given" in done.said
        assert lab.verify().returncode == 0
    unsigned = lab.sandbox.run("manifest", "lock", "--output", lab.lock)
    assert "lab.yaml.sig is the signature of the lock before, not of this one" in unsigned.said
    lab.refused("lock-signature")
    lab.lock.write_text("not a lock")
    done = lab.sandbox.run(*lock, "--json")
    assert (done.returncode, done.codes) == (2, ["usage"])
    assert "does not say which version comes next" in done.said
    assert lab.lock.read_text() == "not a lock"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--lock-version", "0"), "is not a whole number from 1 to 2147483647"),
        (("--lock-version=-1",), "is not a whole number from 1 to 2147483647"),
        (("--lock-version", "9" * 5000), "is not a whole number from 1 to 2147483647"),
        (("--expires", "2026-02-30"), "is not a day of the calendar"),
        (("--expires", "2020-01-01"), "is over: this machine's clock says"),
        (("--expires", "soon"), "is neither a number of days like 90d nor a date"),
    ],
)
def test_versions_and_dates_that_are_none_are_refused(sandbox: Sandbox, words: tuple[str, ...], complaint: str) -> None:
    done = sandbox.run("manifest", "lock", "--output", "x.yaml", "--manifest", "x", "--json", *words)
    assert (done.returncode, done.codes) == (2, ["usage"])
    assert complaint in done.said


def test_the_password_of_a_key_comes_from_a_variable_a_file_or_the_terminal(lab: Lab) -> None:
    pair = make_pair(lab.sandbox.folder, "secret", password=PASSWORD)
    lock = ("manifest", "lock", "--output", lab.lock, "--sign", pair.private)
    file = lab.sandbox.folder / "password"
    file.write_text(f"{PASSWORD}\n", encoding="utf-8")
    without = lab.sandbox.run(*lock, "--json")
    assert (without.returncode, without.codes) == (2, ["signing-key"])
    assert "is encrypted, and no password was given" in without.said
    for name, value, status in (
        ("KLEIN_SETUP_KEY_PASSWORD", PASSWORD, 0),
        ("KLEIN_SETUP_KEY_PASSWORD", "another password", 2),
        ("KLEIN_SETUP_KEY_PASSWORD_FILE", str(file), 0),
        ("KLEIN_SETUP_KEY_PASSWORD_FILE", str(file) + "x", 2),
    ):
        done = lab.sandbox.run(*lock, env={name: value})
        assert done.returncode == status, done.said
        assert PASSWORD not in done.said
    asked = lab.sandbox.answering(*lock, answers=[PASSWORD])
    assert asked.returncode == 0, asked.stdout
    assert PASSWORD not in asked.stdout
    lab.pair = pair
    assert lab.verify().returncode == 0


def test_without_the_package_the_extra_is_named(lab: Lab) -> None:
    lab.sandbox.plant(lab.sandbox.folder / "without" / "cryptography" / "__init__.py", b"raise ImportError\n")
    path = f"{lab.sandbox.folder / 'without'}{os.pathsep}{lab.sandbox.environ['PYTHONPATH']}"
    words = ("verify", "--quick", "--json", "--manifest", lab.lock, "--verify-with", lab.pair.public)
    done = lab.sandbox.run(*words, env={"PYTHONPATH": path})
    assert (done.returncode, done.codes) == (2, ["signing-key"])
    assert "pip install 'klein-setup[signing]'" in done.said
