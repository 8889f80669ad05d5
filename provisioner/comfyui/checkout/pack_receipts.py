"""What klein-setup installed of custom nodes, a file for each, in the user's own state folder.

What lies in a tree says nothing about what may be removed from it: a stranger may have filled it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import receipt_in, receipt_value, write_json
from provisioner.comfyui.checkout_models import PackReceipt
from provisioner.core.json_reader import as_dict, as_list
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root
from provisioner.disk.safe_path import complaint_about_path

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PackReceipts:
    """The receipts of this user's runs.

    Parameters
    ----------
    folder : callable
        Returns the folder they are in; asked when it is needed.
    """

    folder: Callable[[], Path]

    def of(self, tree: Path) -> dict[str, PackReceipt]:
        """Return the receipts of a tree by the name of the pack; one that cannot be read is none."""
        place = self._place(tree)
        try:
            names = sorted(each.stem for each in place.glob("*.json"))
        except OSError:
            return {}
        return {name: found for name in names if (found := self._read(place, name)) is not None}

    def keep(self, tree: Path, receipt: PackReceipt) -> None:
        """Keep a receipt; raises StorageError."""
        value: dict[str, object] = {
            "schema_version": _SCHEMA,
            "tree": str(tree),
            "name": receipt.name,
            "archive_sha256": receipt.archive_sha256,
            "requirements": list(receipt.requirements),
            "checkout": receipt_value(receipt.checkout),
        }
        write_json(self._root, self._place(tree) / f"{receipt.name}.json", value)

    def forget(self, tree: Path, name: str) -> None:
        """Remove a receipt, if there is one; raises StorageError."""
        path = self._place(tree) / f"{name}.json"
        if path.exists():
            self._root.remove(path)
            self._root.remove_folder(path.parent)

    @property
    def _root(self) -> Root:
        return Root(self.folder(), is_private=True)

    def _place(self, tree: Path) -> Path:
        place = os.path.normcase(os.path.realpath(tree))
        return self.folder() / hashlib.sha256(os.fsencode(place)).hexdigest()[:24]

    def _read(self, place: Path, name: str) -> PackReceipt | None:
        value = read_object(place / f"{name}.json")
        if value is None or value.get("schema_version") != _SCHEMA or value.get("name") != name:
            return None
        checkout = receipt_in(dict(as_dict(value.get("checkout"))))
        if checkout is None or complaint_about_path(name) is not None or "/" in name:
            return None
        sha256 = value.get("archive_sha256")
        return PackReceipt(
            name=name,
            archive_sha256=sha256 if isinstance(sha256, str) else None,
            requirements=tuple(each for each in as_list(value.get("requirements")) if isinstance(each, str)),
            checkout=checkout,
        )
