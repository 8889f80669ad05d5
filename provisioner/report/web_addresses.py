"""Addresses of pages about what was installed: for people, never fetched by this program."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from provisioner.core.models import Artifact, HubFile, OciFile

COMFYUI_REPOSITORY = "https://github.com/Comfy-Org/ComfyUI"
WORKFLOW_TEMPLATES = "https://github.com/Comfy-Org/workflow_templates/blob/main/templates"


def source_page(artifact: Artifact) -> str | None:
    """Return the page of the first source of a file, at the commit that is pinned; None for none, and for a registry.

    Examples
    --------
    >>> from provisioner.core.models import Artifact, HubFile
    >>> at = HubFile(repo_id="org/name", revision="c0de", filename="vae/a b.safetensors")
    >>> source_page(Artifact(id="a", role="vae", name="a", folder="vae", size=1, sha256="0", sources=(at,)))
    'https://huggingface.co/org/name/blob/c0de/vae/a%20b.safetensors'
    """
    source = next(iter(artifact.sources), None)
    if source is None or isinstance(source, OciFile):
        return None
    if isinstance(source, HubFile):
        return f"https://huggingface.co/{quote(source.repo_id)}/blob/{source.revision}/{quote(source.filename)}"
    return source.url.partition("?")[0].partition("#")[0]


def commit_page(commit: str) -> str:
    """Return the page of a commit of ComfyUI; empty for what is no commit.

    >>> commit_page("2f35f4a08176d993cded35dac3332be4f7287f41").startswith("https://github.com/"), commit_page("main")
    (True, '')
    """
    is_commit = len(commit) == 40 and set(commit) <= set("0123456789abcdef")
    return f"{COMFYUI_REPOSITORY}/commit/{commit}" if is_commit else ""


def template_page(name: str) -> str:
    """Return the page of one of ComfyUI's workflow templates."""
    return f"{WORKFLOW_TEMPLATES}/{quote(name, safe='', errors='replace')}"


def is_web_address(text: str) -> bool:
    """Whether a text is an address that a page may link to: https or http, with a host and without a login.

    >>> [is_web_address(each) for each in ("https://a.example/x", "javascript:alert(1)", "https://u:p@a.example")]
    [True, False, False]
    """
    try:
        parts = urlsplit(text)
        return parts.scheme in {"https", "http"} and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return False
