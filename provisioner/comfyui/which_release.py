"""Decide which release of ComfyUI is meant: by the version asked for, by a repository's tags, by what the models need.

Pure: it reads what git or a server answered.  A tag is a name that can be moved: the commit it gave before is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from provisioner.comfyui.install_plan import is_archive
from provisioner.comfyui.release_models import ComfyRelease, ComfyTable
from provisioner.comfyui.releases import is_at_least, version_key
from provisioner.core.errors import NotTheFileError, OfflineError, ServerError, UsageError
from provisioner.core.hosts import LOOPBACK, is_in_the_clear
from provisioner.core.json_reader import as_dict, as_list, parse_object
from provisioner.core.models import Artifact
from provisioner.core.redact import printable, redact
from provisioner.core.units import listing

LATEST, PINNED = "latest", "pinned"

TAGS_OF_A_PAGE = 50
"""How many tags a server is asked for at once; Gitea gives no more, GitHub up to 100."""

_RELEASE = re.compile(r"v?((?:0|[1-9][0-9]{0,4})(?:\.(?:0|[1-9][0-9]{0,4})){2})", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NEAREST = 2  # on each side of a version that does not exist
_ANOTHER_SOURCE = "Name a complete and current mirror of ComfyUI with --comfyui-source, or another --comfyui-version."


@dataclass(frozen=True, slots=True)
class Need:
    """The oldest ComfyUI that loads some files, and the file that asks for it."""

    version: str
    of: str  # the file's name


@dataclass(frozen=True, slots=True)
class Recorded:
    """A commit that a version stood for at another time."""

    version: str
    commit: str
    where: str  # for a person: "the lock of 2026-11-27"


# --- what was asked for ------------------------------------------------------------------------


def parse_wanted_version(text: str) -> str:
    """Return ``"latest"``, ``"pinned"``, or a release's version without its "v"; raises ValueError, saying why.

    >>> parse_wanted_version("v0.46.0"), parse_wanted_version("latest")
    ('0.46.0', 'latest')
    """
    found = _RELEASE.fullmatch(text)
    if text in (LATEST, PINNED) or found is not None:
        return text if found is None else found[1]
    raise ValueError("is no release of ComfyUI; expected one like 0.46.0, or latest, or pinned")


def need_of(artifacts: Iterable[Artifact]) -> Need | None:
    """Return the newest of the versions that files need, of all manifests; None where no file says."""
    needs = [Need(each.min_comfyui, each.known_as or each.name) for each in artifacts if each.min_comfyui is not None]
    return max(needs, key=lambda each: version_key(each.version), default=None)


def check_suffices(release: ComfyRelease, need: Need | None, *, asked: str) -> None:
    """Raise UsageError where a release that was asked for (`asked`) does not load the files."""
    if need is not None and is_at_least(release.version, need.version) is False:
        named = release.version if asked == release.version else f"{release.version} ({asked})"
        raise UsageError(
            f"ComfyUI {named} was asked for, and {need.of} needs {need.version} or newer.",
            hint=f"Name {need.version} or newer with --comfyui-version, or leave it out: then a release is chosen that "
            "loads these files.",
            asked=release.version,
            needed=need.version,
        )


# --- tags --------------------------------------------------------------------------------------


def check_has_tags(source: str) -> None:
    """Raise UsageError where a source has no tags, or they would come over a connection that others can change."""
    if is_archive(source):
        raise UsageError(
            f"{redact(source)} is an archive: it does not say which commit a version is.",
            hint="Name a repository with --comfyui-source, or leave --comfyui-version out.",
        )
    is_plain_git = source.lower().startswith("git://") and urlsplit(source).hostname not in LOOPBACK
    if is_plain_git or is_in_the_clear(source):
        raise UsageError(
            f"{redact(source)} is not encrypted: others on the network could change which commit a version is.",
            hint="Use the https address of that repository, or --comfyui-version pinned, whose commit is known.",
        )


def parse_tags(text: str) -> tuple[ComfyRelease, ...]:
    r"""Return the releases among what ``git ls-remote --tags`` printed, newest first.

    The commit of an annotated tag is the one it leads to, in the line that ends in ``^{}``.

    >>> lines = f"{'a' * 40}\trefs/tags/v0.9.0\n{'b' * 40}\trefs/tags/v0.10.0\n{'c' * 40}\trefs/tags/v0.10.0^{{}}\n"
    >>> [(each.version, each.commit[:2], each.tag) for each in parse_tags(lines + "?\trefs/tags/v1.0.0\n")]
    [('0.10.0', 'cc', 'v0.10.0'), ('0.9.0', 'aa', 'v0.9.0')]
    """
    commits: dict[str, str] = {}
    for line in text.splitlines():
        commit, _, ref = line.partition("\t")
        name = ref.removeprefix("refs/tags/")
        if name != ref:
            if name.endswith("^{}"):
                commits[name[:-3]] = commit
            else:
                commits.setdefault(name, commit)
    return releases_of(commits)


def releases_of(commits: Mapping[str, str]) -> tuple[ComfyRelease, ...]:
    """Return the releases among tags, newest first; of ``0.46.0`` and ``v0.46.0`` the second counts.

    Other names (candidates, nightly builds, anything odd) name no release and are left out.

    Parameters
    ----------
    commits : mapping of str to str
        By the tag's name.
    """
    found: dict[str, ComfyRelease] = {}
    for name in sorted(commits, reverse=True):
        matched = _RELEASE.fullmatch(name)
        if matched is not None and _COMMIT.fullmatch(commits[name]):
            found.setdefault(matched[1], ComfyRelease(version=matched[1], commit=commits[name], tag=name))
    return tuple(sorted(found.values(), key=lambda each: version_key(each.version), reverse=True))


def release_named(version: str, releases: Sequence[ComfyRelease], source: str) -> ComfyRelease:
    """Return the release of a version, or of ``"latest"``; raises UsageError, with the nearest versions."""
    if not releases:
        raise UsageError(
            f"{redact(source)} has no tag of a release, such as v0.46.0.", hint=_ANOTHER_SOURCE, source=redact(source)
        )
    if version == LATEST:
        return releases[0]
    found = next((each for each in releases if each.version == version), None)
    if found is None:
        near = nearest_versions(version, (each.version for each in releases))
        raise UsageError(
            f"{redact(source)} has no ComfyUI {version}; the nearest are {listing(near)}.",
            hint=_ANOTHER_SOURCE,
            nearest=list(near),
        )
    return found


def nearest_versions(version: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return the versions right below and above one, and the newest of all.

    >>> nearest_versions("0.4.0", ["0.1.0", "0.2.0", "0.3.0", "0.5.0", "0.6.0", "0.7.0", "0.9.0"])
    ('0.2.0', '0.3.0', '0.5.0', '0.6.0', '0.9.0')
    """
    ordered = sorted(known, key=version_key)
    below = [each for each in ordered if version_key(each) < version_key(version)][-_NEAREST:]
    above = [each for each in ordered if version_key(each) > version_key(version)]
    return tuple(dict.fromkeys((*below, *above[:_NEAREST], *ordered[-1:])))


def lowest_that_suffices(releases: Iterable[ComfyRelease], need: Need) -> Iterator[ComfyRelease]:
    """Yield the releases that load the files, the oldest first."""
    ordered = sorted(releases, key=lambda each: version_key(each.version))
    return (each for each in ordered if is_at_least(each.version, need.version))


def check_not_moved(release: ComfyRelease, records: Iterable[Recorded], source: str) -> None:
    """Raise NotTheFileError where a version stood for another commit before."""
    for each in records:
        if each.version == release.version and each.commit != release.commit:
            raise NotTheFileError(
                f"{redact(source)} has ComfyUI {release.version} at commit {release.commit[:12]}, and {each.where} "
                f"names {each.commit[:12]}: the tag was moved, or one of them is not ComfyUI's.",
                hint="Nothing was changed. Compare both with the tags of https://github.com/Comfy-Org/ComfyUI; do not "
                "go on where nobody can say why.",
                expected=each.commit,
                observed=release.commit,
                source=redact(source),
            )


# --- a server's list of tags, where there is no git --------------------------------------------


def tags_address(source: str, page: int) -> str:
    """Return the address of a page of a repository's tags at GitHub, or at Gitea or Forgejo; pages count from 1.

    >>> tags_address("https://github.com/Comfy-Org/ComfyUI.git", 2)
    'https://api.github.com/repos/Comfy-Org/ComfyUI/tags?per_page=50&page=2'
    >>> tags_address("https://git.example/forge/Comfy-Org/ComfyUI", 1)
    'https://git.example/forge/api/v1/repos/Comfy-Org/ComfyUI/tags?limit=50&page=1'
    """
    size = "per_page" if _is_github(source) else "limit"
    return f"{_api_of(source)}/tags?{size}={TAGS_OF_A_PAGE}&page={page}"


def commit_address(source: str, commit: str) -> str:
    """Return the address at which such a server describes a commit."""
    return f"{_api_of(source)}/git/commits/{commit}"


def _is_github(source: str) -> bool:
    return urlsplit(source).hostname == "github.com"


def _api_of(source: str) -> str:
    parts = urlsplit(source)
    folder, _, name = parts.path.rstrip("/").removesuffix(".git").rpartition("/")
    below, _, owner = folder.rpartition("/")
    if _is_github(source):
        return f"https://api.github.com/repos/{owner}/{name}"
    return urlunsplit((parts.scheme, parts.netloc, f"{below}/api/v1/repos/{owner}/{name}", "", ""))


def parse_tag_page(text: str, source: str) -> dict[str, str]:
    """Return the commits by the names of the tags on a page; raises ServerError where it is no such page.

    >>> parse_tag_page('[{"name": "v1.0.0", "commit": {"sha": "c0ffee"}}, {"name": 3}]', "https://x.example/y/z")
    {'v1.0.0': 'c0ffee'}
    """
    tags = (parse_object(f'{{"tags": {text}}}') or {}).get("tags")
    if not isinstance(tags, list):
        raise ServerError(
            f"{redact(source)} has no list of tags that klein-setup can read.",
            hint="Install git, which reads the tags of any repository; or use --comfyui-version pinned.",
        )
    rows = ((as_dict(each).get("name"), as_dict(as_dict(each).get("commit")).get("sha")) for each in as_list(tags))
    return {name: commit for name, commit in rows if isinstance(name, str) and isinstance(commit, str)}


def parse_tree(text: str, commit: str) -> str | None:
    """Return the id of a commit's tree, as GitHub or Gitea say it; None where the answer is about something else."""
    found = parse_object(text) or {}
    trees = (as_dict(each.get("tree")).get("sha") for each in (found, as_dict(found.get("commit"))))
    tree = next((each for each in trees if isinstance(each, str) and _COMMIT.fullmatch(each)), None)
    return tree if found.get("sha") == commit else None


# --- in words ----------------------------------------------------------------------------------


def verified_with(table: ComfyTable, release: ComfyRelease) -> str:
    """Return the sentence of a plan about the release that klein-setup was verified with, and the newest that was seen.

    Parameters
    ----------
    table : ComfyTable
        As it came with klein-setup.
    release : ComfyRelease
        The one that is installed.
    """
    rows = [(each.version, each.released) for each in table.releases]
    rows += [] if table.newest_seen is None else [(table.newest_seen.version, table.newest_seen.released)]
    newest, day = max(rows, key=lambda each: version_key(each[0]))
    pinned = table.pinned.version
    said = f"ComfyUI {pinned} is what this klein-setup was verified with"
    if release.commit != table.pinned.commit:
        said += f", and {release.version} is not"
    if version_key(newest) > max(version_key(pinned), version_key(release.version)):
        said += f"; newest seen {newest}" + (f" ({day})" if day else "")
    return f"{said}."


def moved_by(need: Need, pinned: ComfyRelease) -> str:
    """Return why another release than the pinned one is installed, a clause."""
    return f"not {pinned.version}, because {need.of} needs {need.version} or newer"


def no_release_for(need: Need, newest: str, because: str) -> OfflineError:
    """Return the error for files that need a release whose commit is not known here, and nobody answers."""
    return OfflineError(
        f"{need.of} needs ComfyUI {need.version} or newer; klein-setup knows the commits of releases up to {newest}, "
        f"and no repository could be asked: {because}",
        hint=f"Run where there is a network, or name a repository on this disk with --comfyui-source DIR; with "
        f"--comfyui-version VERSION you say which release it is ({need.version} or newer).",
        missing=[f"ComfyUI {need.version}"],
    )


def not_recorded(version: str, table: ComfyTable, because: str) -> OfflineError:
    """Return the error for a version whose commit is recorded nowhere, with ``--offline``."""
    known = listing([each.version for each in table.releases])
    what = "the latest ComfyUI" if version == LATEST else f"ComfyUI {version}"
    return OfflineError(
        f"Which commit {what} is, is not recorded on this computer: {because}",
        hint="Run once without --offline, name a repository on this disk with --comfyui-source DIR, or name one of the "
        f"releases that are known: {known}.",
        missing=[what],
    )


def conflict_of(version: str, sides: Sequence[str]) -> str:
    """Return both sides of a conflict, as pip names them, in words.

    >>> print(
    ...     conflict_of("0.46.0", ["The user requested torch>=2.16", "The user requested (constraint) torch==2.15.0"])
    ... )
    ComfyUI 0.46.0 cannot be installed here: its requirements.txt asks for torch>=2.16, and torch==2.15.0 is held
    """
    asked: list[str] = []
    held: list[str] = []
    for side in dict.fromkeys(map(printable, sides)):
        constraint = side.removeprefix("The user requested (constraint) ")
        if constraint != side:
            held.append(constraint)
        else:
            line = side.removeprefix("The user requested ")
            asked.append(side if line == side else f"its requirements.txt asks for {line}")
    said = [*asked, *([f"{listing(held)} {'is' if len(held) == 1 else 'are'} held"] if held else [])]
    return f"ComfyUI {version} cannot be installed here: {', and '.join(said) or 'its requirements exclude each other'}"
