"""ComfyUI's own workflow for the model, found among its templates' packages; names are read there, never made up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from provisioner.core.json_reader import as_dict, as_list, parse_object
from provisioner.core.models import ArtifactSet

INDEX_BYTES = 8 * 1024 * 1024  # it has 570 kB in comfyui-workflow-templates-json 0.1.47


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A workflow template of ComfyUI."""

    name: str  # "image_flux2_klein_text_to_image"
    title: str | None  # as its browser of templates shows it: "Flux.2 [Klein] 4B: Text to Image"

    @property
    def query(self) -> str:
        """What opens the template when it follows the server's address.

        Read in ``useTemplateUrlLoader`` of comfyui-frontend-package 1.48.7, which ComfyUI 0.33.0 requires.  A frontend
        that does not know the parameter shows its usual page.
        """
        return f"/?template={self.name}"


def find_template(python: Path | None, wanted: ArtifactSet) -> Template | None:
    """Return the template that the manifest names for a set, or makes its image with, where that Python has it.

    The packages keep the files in several folders (comfyui-workflow-templates 0.11: ``_json``, ``_core``, ...).
    """
    own = wanted.workflow if wanted.workflow is not None and wanted.workflow.sha256 is None else None
    name = wanted.template or (None if own is None else own.name)
    if python is None or name is None:
        return None
    found = template_files(python).get(f"{name}.json")
    return None if found is None else Template(name=name, title=_title(found.with_name("index.json"), name))


def template_files(python: Path) -> dict[str, Path]:
    """Return the workflow templates that a Python has, by file name."""
    home = python.parent.parent if python.parent.name in {"bin", "Scripts"} else python.parent
    places = [*home.glob("lib/python3*/site-packages"), home / "Lib" / "site-packages"]
    return {each.name: each for place in places for each in place.glob("comfyui_workflow_templates*/templates/*.json")}


def _title(index: Path, name: str) -> str | None:
    """Return the title that a package's index gives to a template."""
    try:
        with index.open("rb") as stream:
            data = stream.read(INDEX_BYTES + 1)
    except OSError:
        return None
    title = index_entry(data, name).get("title")
    return title if isinstance(title, str) else None


def index_entry(data: bytes, name: str) -> dict[str, object]:
    """Return what the index of a package says of a template; empty where it says nothing."""
    sections = parse_object(b'{"sections":' + data + b"}", most=INDEX_BYTES + 20)  # it is a list
    for section in as_list(as_dict(sections).get("sections")):
        for template in map(as_dict, as_list(as_dict(section).get("templates"))):
            if template.get("name") == name:
                return template
    return {}
