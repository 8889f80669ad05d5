"""Which release a run goes to: asked for, recorded in a lock or a receipt, needed by the models, or the pinned one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from provisioner.comfyui.checkout_models import CheckoutReceipt, ComfyCheckout
from provisioner.comfyui.known_bad import Combination, matching
from provisioner.comfyui.release_models import ComfyRelease, KnownBad
from provisioner.comfyui.which_release import releases_of
from provisioner.commands import inspect_comfyui
from provisioner.commands.choose_release import ReleaseChooser
from provisioner.commands.inspect_comfyui import ComfyUIOptions, read_table
from provisioner.commands.run import Run
from provisioner.core.errors import NetworkError, NotTheFileError, OfflineError, UnreachableError, UsageError
from provisioner.core.models import Lock
from tests.support import builders

SHIPPED = read_table()
ROW = replace(SHIPPED.pinned, tree="e" * 40)
TABLE = replace(SHIPPED, releases=(ROW,), pinned=ROW, known_bad=())
TREE = Path("/comfy")
A, B = "a" * 40, "b" * 40
TAGS = releases_of({"v0.34.0": A, "v0.46.0": B, "v0.47.0-rc1": "c" * 40})
EMPTY = ComfyCheckout(given=TREE, kind="empty")
RECEIPT = CheckoutReceipt(
    version="0.34.0",
    commit=A,
    tree="d" * 40,
    source="https://x.example",
    way="git",
    made_at="2026-11-27",
    entries=(),
    files=(),
    tag="v0.34.0",
)
OURS = ComfyCheckout(
    given=TREE, kind="git", tree=TREE, version="0.34.0", commit=A, has_git=True, local_changes=(), receipt=RECEIPT
)
LOCK = Lock(manifest_sha256="0" * 64, locked_on="2026-11-27", comfyui_version="0.34.0", comfyui_commit=A)


@dataclass
class Repositories:
    """A repository with tags, or one that does not answer."""

    tags: tuple[ComfyRelease, ...] = TAGS
    error: NetworkError | None = None
    asked: list[str] = field(default_factory=list)
    described: ComfyCheckout = EMPTY

    def releases_at(self, source: str) -> tuple[ComfyRelease, ...]:
        self.asked.append(source)
        if self.error is not None:
            raise self.error
        return self.tags

    def with_tree(self, release: ComfyRelease, source: str) -> ComfyRelease:
        return release

    def has_git(self) -> bool:
        return True

    def describe(self, folder: Path) -> ComfyCheckout:
        return self.described


def run_of(repositories: Repositories, *, needs: str | None = None, lock: Lock | None = None) -> Run:
    made = SimpleNamespace(
        target=replace(builders.comfy_target(TREE / "models"), given=TREE),
        session=SimpleNamespace(checkouts=repositories, machine=builders.machine()),
        wanted=builders.artifact_set(builders.artifact(min_comfyui=needs)),
        manifest=SimpleNamespace(lock=lock),
        options=SimpleNamespace(extra_model_paths=()),
    )
    return cast("Run", made)


def chosen(
    wanted: str | None = None,
    *,
    repositories: Repositories | None = None,
    checkout: ComfyCheckout = EMPTY,
    needs: str | None = None,
    lock: Lock | None = None,
    may_ask: bool = True,
) -> tuple[str, str, str | None]:
    run = run_of(repositories or Repositories(), needs=needs, lock=lock)
    chooser = ReleaseChooser(run=run, table=TABLE, checkout=checkout, source="https://x.example/y", may_ask=may_ask)
    choice = chooser.choose(wanted)
    return choice.release.version, choice.release.commit, choice.why


def test_what_the_table_knows_is_taken_without_asking_anybody() -> None:
    repositories = Repositories()
    for wanted in (None, "pinned", "0.33.0"):
        assert chosen(wanted, repositories=repositories) == ("0.33.0", ROW.commit, None)
    assert repositories.asked == []


def test_another_version_and_the_latest_are_those_of_the_tags() -> None:
    assert chosen("0.34.0") == ("0.34.0", A, None)
    assert chosen("latest") == ("0.46.0", B, None)
    with pytest.raises(UsageError, match=r"the nearest are 0\.34\.0 and 0\.46\.0"):
        chosen("0.45.0")


def test_a_tag_that_leads_elsewhere_than_the_table_the_receipt_or_the_lock_is_refused() -> None:
    moved = Repositories(tags=releases_of({"v0.34.0": B}))
    for checkout, lock, said in ((OURS, None, "the receipt of"), (EMPTY, LOCK, "the lock of 2026-11-27")):
        with pytest.raises(NotTheFileError, match=said):
            chosen("0.34.0", repositories=moved, checkout=checkout, lock=lock)
    with pytest.raises(NotTheFileError, match="klein-setup's table names"):
        chosen("latest", repositories=Repositories(tags=releases_of({"v0.33.0": B})))
    # Of a commit that came from no tag nothing follows: it may lie between two releases.
    untagged = replace(OURS, receipt=replace(RECEIPT, tag=None))
    assert chosen("0.34.0", repositories=moved, checkout=untagged) == ("0.34.0", B, None)


def test_what_is_there_already_needs_no_answer_and_anything_else_does() -> None:
    for error in (OfflineError("nobody is asked."), UnreachableError("no connection")):
        silent = Repositories(error=error)
        assert chosen("0.34.0", repositories=silent, checkout=OURS) == ("0.34.0", A, None)
        with pytest.raises(type(error)):
            chosen("0.46.0", repositories=silent, checkout=OURS)
        with pytest.raises(type(error)):  # the receipt is a claim, and the tree is at another commit
            chosen("0.34.0", repositories=silent, checkout=replace(OURS, commit=B))
        with pytest.raises(OfflineError, match=r"needs ComfyUI 0\.34\.0 or newer"):
            chosen(repositories=silent, needs="0.34.0")


def test_files_that_need_a_newer_one_move_the_choice_to_the_oldest_that_suffices() -> None:
    reason = "not 0.33.0, because vae.safetensors needs 0.33.1 or newer"
    assert chosen(needs="0.33.1") == ("0.34.0", A, reason)
    assert chosen(needs="0.20.0") == ("0.33.0", ROW.commit, None)
    with pytest.raises(UsageError, match=r"has no ComfyUI 0\.99\.0"):
        chosen(needs="0.99.0")
    for wanted in ("0.34.0", "pinned", "latest"):
        with pytest.raises(UsageError, match=r"needs 0\.99\.0 or newer"):
            chosen(wanted, needs="0.99.0")


def test_a_lock_and_a_tree_whose_program_is_gone_bring_their_release_back() -> None:
    assert chosen(lock=LOCK) == ("0.34.0", A, "as in the lock of 2026-11-27")
    gone = replace(OURS, tree=None, kind="empty", commit=None)
    assert chosen(checkout=gone) == ("0.34.0", A, f"as in the receipt of {TREE}")
    planted = replace(gone, receipt=replace(RECEIPT, version="0.9.0", tag="v0.9.0"))
    assert chosen(checkout=planted) == ("0.33.0", ROW.commit, None)
    with pytest.raises(NotTheFileError, match="the lock of"):
        chosen(lock=replace(LOCK, comfyui_commit=B))
    known = replace(LOCK, comfyui_version="0.33.0")  # a commit between two releases reports the older one
    assert chosen(lock=known) == ("0.33.0", ROW.commit, None)


def test_where_nobody_may_be_asked_the_commit_stays_open() -> None:
    repositories = Repositories()
    for wanted, needs, version in (("latest", None, "latest"), ("0.34.0", None, "0.34.0"), (None, "0.34.0", "0.34.0")):
        found = chosen(wanted, repositories=repositories, needs=needs, may_ask=False)
        assert found[:2] == (version, "")
    assert repositories.asked == []


# --- in a run -----------------------------------------------------------------------------------------


def test_a_version_that_is_named_moves_an_existing_checkout_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_comfyui, "read_table", lambda: TABLE)

    def planned(checkout: ComfyCheckout, version: str | None) -> tuple[str, str]:
        run = run_of(Repositories(described=checkout))
        found = inspect_comfyui.inspect_comfyui(run, ComfyUIOptions(version=version))
        assert found is not None
        return found.plan.action, found.plan.reason

    assert planned(OURS, None) == ("none", "--update-comfyui would update it")
    assert planned(OURS, "0.46.0") == ("update", "from 0.34.0 to 0.46.0")
    assert planned(OURS, "pinned") == ("update", "from 0.34.0 to 0.33.0")
    newest = replace(OURS, version="0.47.0", commit="f" * 40)
    assert planned(newest, "latest") == ("none", "0.47.0 is newer than 0.46.0; it is not downgraded")
    with pytest.raises(UsageError, match="only a models folder was named"):
        planned(ComfyCheckout(given=TREE, kind="models"), "0.46.0")


def test_a_release_that_the_table_does_not_know_is_none_between_two_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    row = KnownBad(id="between", since="0.33.0", is_unreleased=True, symptom="x", good="y", threads=("a/b#1",))
    monkeypatch.setattr(inspect_comfyui, "read_table", lambda: replace(TABLE, known_bad=(row,)))

    def matched(checkout: ComfyCheckout) -> list[str]:
        found = inspect_comfyui.inspect_comfyui(run_of(Repositories(described=checkout)))
        assert found is not None
        seen = Combination(machine=builders.machine(), version=checkout.version, commit=checkout.commit)
        return [each.id for each in matching(seen, found.table)]

    assert matched(OURS) == []
    assert matched(replace(OURS, commit=B)) == ["between"]  # somebody committed to it
    assert matched(replace(OURS, receipt=replace(RECEIPT, tag=None))) == ["between"]
