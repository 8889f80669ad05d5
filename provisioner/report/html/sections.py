"""The sections of the page: each takes the document and returns its HTML, or nothing if it has no content."""

from __future__ import annotations

from provisioner.core.units import count, exact_bytes, gib, human_bytes, human_duration
from provisioner.report.html.markup import (
    Html,
    badge,
    bullets,
    code,
    command_block,
    element,
    facts,
    joined,
    link,
    paragraphs,
    path,
    prose,
    section,
    table,
)
from provisioner.report.html.moments import moment
from provisioner.report.html.node import Node
from provisioner.report.html.verdict import HASHED, all_findings, basis_of, has_image
from provisioner.report.web_addresses import commit_page

# --- the summary ------------------------------------------------------------------------------


def set_words(document: Node) -> str:
    """Return which set of which manifest a run was about."""
    manifest, chosen = document.at("manifest", "id").text, document.at("manifest", "set").text
    return f"{manifest}, set {chosen}" if manifest and chosen else manifest


def tiles(document: Node) -> Html:
    """Return the most important figures."""
    found = [_files_tile(document), _bytes_tile(document), _image_tile(document), _gpu_tile(document)]
    items = [
        element(
            "li",
            element("span", label, class_="label"),
            element("span", value, class_="value"),
            element("span", note, class_="note") if note else "",
        )
        for label, value, note in found
        if value
    ]
    return element("ul", *items, class_="tiles") if items else Html("")


_Tile = tuple[str, str, str]


def _files_tile(document: Node) -> _Tile:
    checks = document.at("checks").rows
    right = sum(check.at("status").text == "ok" for check in checks)
    size = document.at("totals", "size").number
    note = f"{human_bytes(size)} in all" if size is not None else ""
    return "Files correct", f"{right} of {len(checks)}" if checks else "", note


def _bytes_tile(document: Node) -> _Tile:
    outcomes = [step.at("outcome") for step in document.at("steps").rows]
    fetched = sum(outcome.at("bytes_fetched").number or 0 for outcome in outcomes)
    seconds = sum(outcome.at("seconds").number or 0 for outcome in outcomes if outcome.at("bytes_fetched").number)
    if fetched > 0:
        return "Fetched", human_bytes(fetched), f"in {human_duration(seconds)}" if seconds > 0 else ""
    asked, saved = document.at("totals", "bytes_to_fetch").number, document.at("totals", "bytes_saved").number
    if not asked or any(outcome for outcome in outcomes):
        return "Fetched", "", ""
    return "To fetch", human_bytes(asked), f"{human_bytes(saved)} already here" if saved else ""


def _image_tile(document: Node) -> _Tile:
    smoke = document.at("details", "smoke_test")
    if not smoke:
        return "Test image", "", ""
    seconds, steps = smoke.at("timings", "total_s").number, smoke.at("wish", "steps").whole
    note = count(steps, "step") if steps is not None else ""
    if not has_image(document):
        return "Test image", "not verified", note
    return "Test image", human_duration(seconds) if seconds is not None else "generated", note


def _gpu_tile(document: Node) -> _Tile:
    gpus = document.at("machine", "gpus").rows
    if not gpus:
        return "GPU", "none found" if document.at("machine") else "", ""
    name = gpus[0].at("name").text.removeprefix("NVIDIA ").removeprefix("GeForce ")
    memory = gpus[0].at("memory_total_bytes").whole
    others = f", and {count(len(gpus) - 1, 'more', 'more')}" if len(gpus) > 1 else ""
    return "GPU", name, (gib(memory) if memory is not None else "") + others


# --- what is wrong -----------------------------------------------------------------------------


def errors_section(document: Node) -> Html:
    """Return the errors that ended the run, with their hints."""
    items = []
    for error in document.at("errors").rows:
        body = [element("p", prose(error.at("message").text or "An error without a message."), class_="message")]
        body += _hint(error)
        body += [element("p", badge(error.at("code").text, "bad"))] if error.at("code").text else []
        body += _last_lines(error.at("context"))
        items.append(element("li", *body, class_="bad"))
    return section("What went wrong", _said(items), name="errors")


def _last_lines(context: Node) -> list[Html]:
    """Return the last lines of a process, from whichever fact holds lines."""
    said = [line for _, fact in context.items for line in fact.texts][-20:]
    if not said:
        return []
    return [element("details", element("summary", "Its last lines"), element("pre", element("code", "\n".join(said))))]


def findings_section(document: Node) -> Html:
    """Return the findings, problems first, with those of the smoke test; each is said once, and no error again."""
    said = {error.at("message").text for error in document.at("errors").rows}  # with the errors, above
    items: dict[Html, bool] = {}
    for finding in all_findings(document):
        if finding.at("message").text in said:
            continue
        said.add(finding.at("message").text)
        is_problem = finding.at("severity").text == "problem"
        tone = "bad" if is_problem else "warn"
        where, message = finding.at("path").text, finding.at("message").text
        body = [badge("problem" if is_problem else "warning", tone)]
        body.append(element("p", prose(message or finding.at("code").text), class_="message"))
        body += [element("p", path(where))] if where and where not in message else []
        items.setdefault(element("li", *body, *_hint(finding), class_=tone), is_problem)
    return section("Findings", _said(sorted(items, key=lambda item: not items[item])), name="findings")


def _hint(entry: Node) -> list[Html]:
    hint = entry.at("hint").text
    return [element("p", element("strong", "Hint: "), prose(hint))] if hint else []


def _said(items: list[Html]) -> Html:
    return element("ul", *items, class_="said") if items else Html("")


# --- the files ---------------------------------------------------------------------------------

_VERDICTS = {
    "ok": ("correct", "good"),
    "missing": ("missing", "bad"),
    "size-mismatch": ("wrong size", "bad"),
    "hash-mismatch": ("wrong bytes", "bad"),
    "unreadable": ("unreadable", "bad"),
}
_BASES = {
    "sha256": "every byte was read",
    "blocks": "every byte was read, in blocks",
    "receipt": "receipt; file unchanged since",
    **HASHED,
    "size": "size only",
    "none": "",
}


def files_section(document: Node) -> Html:
    """Return every file with its status and how it was checked; the full digests can be unfolded."""
    rows = [_file_row(document, check) for check in document.at("checks").rows]
    grid = table(
        "The files that were checked",
        ("File", "Status", "Size", "SHA-256", "Checked by"),
        rows,
        numbers=("Size",),
    )
    total = document.at("totals", "size").whole
    words = [f"The whole set is {exact_bytes(total)}." if rows and total is not None else ""]
    licence = document.at("details", "licence")
    if rows and licence.at("name").text:
        words.append(joined(["Licence: ", link(licence.at("name").text, licence.at("url").text), "."]))
    return section("The files", grid, paragraphs([joined(filter(None, words), " ")]), _digests(document), name="files")


def status_badge(check: Node) -> Html:
    """Return what the check of a file says, in a word or two."""
    return badge(*_VERDICTS.get(check.at("status").text, ("not known", "plain")))


def _file_row(document: Node, check: Node) -> list[str]:
    expected, observed = check.at("expected_size").whole, check.at("observed_size").whole
    notes = []
    if check.at("identity").text:
        notes.append(f"It is: {check.at('identity').text}")
    if None not in (expected, observed) and expected != observed:
        notes.append(f"{exact_bytes(observed or 0)} instead of {exact_bytes(expected or 0)}")
    damaged = len(check.at("damage", "bad_blocks").rows)
    if damaged:
        notes.append(
            f"{count(damaged, 'block')} of it {'is' if damaged == 1 else 'are'} damaged; the others are correct."
        )
    name = check.at("path").text or check.at("artifact").text
    shown = element("span", link(path(name), check.at("source_url").text), title=check.at("destination").text or None)
    digest, found = check.at("expected_sha256").text, check.at("observed_sha256").text
    if digest and found and found != digest:
        notes.append(f"The file's own SHA-256 is {found}.")
    size = expected if expected is not None else observed
    return [
        joined([shown, *(element("span", note, class_="sub") for note in notes)]),
        status_badge(check),
        element("span", human_bytes(size), title=exact_bytes(size)) if size is not None else "",
        code(f"{digest[:12]}\u2026", title=digest) if digest else "",
        _BASES.get(basis_of(document, check), ""),
    ]


def _digests(document: Node) -> Html:
    """Return the digests that are wanted, of all files, as ``sha256sum --check`` reads them."""
    lines = [
        _checked_line(check.at("expected_sha256").text, check.at("destination").text or check.at("path").text)
        for check in document.at("checks").rows
        if check.at("expected_sha256").text
    ]
    if not lines:
        return Html("")
    summary = element("summary", "The digests that are wanted, as sha256sum --check reads them")
    return element("details", summary, command_block("\n".join(lines)))


def _checked_line(digest: str, name: str) -> str:
    """Return a line of ``sha256sum``; where a name has backslashes, as on Windows, they are doubled and one leads."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{digest}  {name}" if escaped == name else f"\\{digest}  {escaped}"


# --- the steps ---------------------------------------------------------------------------------

_STEPS = {
    "get-comfyui": "Get ComfyUI into",
    "update-comfyui": "Update ComfyUI in",
    "keep-comfyui": "Keep the ComfyUI in",
    "move-node-pack": "Move the custom node",
    "install-node-pack": "Install the custom nodes",
    "make-environment": "Make the environment",
    "repair-environment": "Repair the environment",
    "keep-environment": "Keep the environment",
    "install-packages": "Install packages in",
    "start-comfyui": "Start the ComfyUI in",
    "generate-image": "Generate the test image",
    "remove": "Remove",
    "fetch-file": "Fetch",
    "place-file": "Use a copy from this machine for",
    "move-file": "Move to the right folder",
    "patch-file": "Replace only the damaged blocks of",
    "record-receipt": "Write the receipt of",
}
_OUTCOMES = {"done": ("done", "good"), "skipped": ("skipped", "warn"), "failed": ("failed", "bad")}


def steps_section(document: Node) -> Html:
    """Return each step with its outcome, or with the bytes it will fetch."""
    steps = document.at("steps").rows
    if not steps:
        return Html("")
    is_plan = not any(step.at("outcome") for step in steps)
    headings = ("Step", "Outcome", "To fetch" if is_plan else "Fetched", "Took")
    grid = table("The steps", headings, [_step_row(step, is_plan=is_plan) for step in steps], numbers=headings[2:])
    space = _space(document) if is_plan else ""
    return section("What will be done" if is_plan else "What was done", grid, space, name="steps")


def _step_row(step: Node, *, is_plan: bool) -> list[str]:
    outcome = step.at("outcome")
    word, tone = _OUTCOMES.get(outcome.at("status").text, ("to do" if is_plan else "not reached", "plain"))
    said = outcome.at("detail").text or step.at("reason").text
    notes = [
        said,
        f"The replaced file is kept as a backup: {step.at('replaces').text}" if step.at("replaces").text else "",
    ]
    name = step.at("path").text or step.at("artifact").text
    number = step.at("bytes_to_fetch") if is_plan else outcome.at("bytes_fetched")
    seconds = outcome.at("seconds").number
    title = joined([_STEPS.get(step.at("kind").text, "Do"), " ", path(name)])
    return [
        joined([title, *(element("span", note, class_="sub") for note in notes if note)]),
        badge(word, tone),
        human_bytes(number.number) if number.number else "",
        human_duration(seconds) if seconds is not None else "",
    ]


def _space(document: Node) -> Html:
    """Return what the plan needs of each file system."""
    sentences = []
    for need in document.at("space").rows:
        needed, free = need.at("needed_bytes").number, need.at("free_bytes").number
        if needed is None or free is None:
            continue
        words = f"{human_bytes(needed)} needed, {human_bytes(free)} free on {need.at('path').text or 'the disk'}"
        is_short = need.at("is_enough").flag is False
        sentences.append(f"{words}: {human_bytes(needed - free)} too little." if is_short else f"{words}.")
    return paragraphs(sentences)


# --- what changed ------------------------------------------------------------------------------


def changes_section(document: Node) -> Html:
    """Return what changed since the last full check."""
    entry = document.at("details", "changes")
    if not entry:
        return Html("")
    since = entry.at("since").text
    items = [
        joined(
            [
                change.at("sentence").text or change.at("what").text,
                Html(" ") if change.at("matters").flag else "",
                badge("can break the setup", "warn") if change.at("matters").flag else "",
            ]
        )
        for change in entry.at("changes").rows
    ]
    lead = f"Compared with the last full check, {moment(since)}:" if since and items else ""
    if not items:
        lead = f"Nothing changed since {moment(since)}." if since else "There is no earlier full check to compare with."
    checked = entry.at("checked").texts
    return section(
        "What changed since the last full check",
        paragraphs([lead]),
        bullets(items),
        *([element("h3", "Checked again"), bullets(checked)] if checked else []),
        name="changes",
    )


# --- the machine and what runs on it -----------------------------------------------------------

_SYSTEMS = {"linux": "Linux", "windows": "Windows", "macos": "macOS", "other": "another system"}


def machine_section(document: Node) -> Html:
    """Return the machine in one column, the software in the others."""
    halves = (
        ("Machine", facts(_machine_rows(document.at("machine")))),
        ("Torch", joined([facts(_torch_rows(document)), _reasons(document)])),
        ("ComfyUI", facts(_comfyui_rows(document))),
    )
    columns = [element("div", element("h3", title), body) for title, body in halves if body]
    return section(
        "Machine and software", element("div", *columns, class_="columns") if columns else "", name="machine"
    )


def _machine_rows(machine: Node) -> list[tuple[str, str]]:
    if not machine:
        return []
    gpus = [row for gpu in machine.at("gpus").rows for row in _gpu_rows(gpu)]
    cuda = ".".join(str(row.whole) for row in machine.at("cuda_driver_version").rows if row.whole is not None)
    driver = machine.at("driver_version").text
    disks = [("Disk", _disk_words(each)) for each in machine.at("file_systems").rows]
    failed = [each for each in machine.at("probes").rows if each.at("is_ok").flag is False]
    unknown = [("Unknown", f"{each.at('source').text}: {each.at('detail').text}") for each in failed]
    recorded = machine.at("recorded_from").text
    return [
        *(gpus or [("GPU", "none found")]),
        ("Driver", driver + (f", supports CUDA up to {cuda}" if driver and cuda else "")),
        ("Memory", _memory_words(machine, "memory_total_bytes", "memory_available_bytes", "available")),
        ("Swap", _swap_words(machine.at("swap_total_bytes").whole)),
        ("System", _system_words(machine)),
        ("Python", machine.at("python_version").text),
        *disks,
        *unknown,
        ("Recorded", f"read from {recorded}, not from this computer" if recorded else ""),
    ]


def _gpu_rows(gpu: Node) -> list[tuple[str, str]]:
    """Return a GPU, and the MIG devices carved out of it."""
    number, sizes = gpu.at("index").whole or 0, [each.whole for each in gpu.at("mig_memory_bytes").rows]
    rows = [(f"GPU {number}", _gpu_words(gpu))]
    for place, uuid in enumerate(gpu.at("mig_devices").texts):
        size = sizes[place] if place < len(sizes) else None
        rows.append((f"GPU {number}:{place}", f"{gib(size)}, {uuid}" if size is not None else uuid))
    return rows


def _gpu_words(gpu: Node) -> str:
    capability = ".".join(str(row.whole) for row in gpu.at("compute_capability").rows if row.whole is not None)
    parts = [
        gpu.at("name").text,
        _memory_words(gpu, "memory_total_bytes", "memory_free_bytes", "free"),
        f"compute capability {capability}" if capability else "",
        gpu.at("uuid").text,
    ]
    return ", ".join(part for part in parts if part)


def _swap_words(size: int | None) -> str:
    if size is None:
        return ""
    return gib(size) if size else "none"


def _memory_words(node: Node, total: str, free: str, word: str) -> str:
    whole, left = node.at(total).whole, node.at(free).whole
    if whole is None:
        return ""
    return gib(whole) + (f", {gib(left)} {word}" if left is not None else "")


def _disk_words(disk: Node) -> str:
    free, total = disk.at("free_bytes").number, disk.at("total_bytes").number
    if free is None or total is None:
        return ""
    return f"{human_bytes(free)} free of {human_bytes(total)} on {disk.at('path').text}"


def _system_words(machine: Node) -> str:
    name = f"{_SYSTEMS.get(machine.at('os').text, '')} {machine.at('os_release').text}".strip()
    parts = [name, machine.at("architecture").text, machine.at("libc").text]
    return ", ".join(part for part in parts if part) + (" (under WSL)" if machine.at("is_wsl").flag else "")


def _torch_rows(document: Node) -> list[tuple[str, str]]:
    """Return the versions in the environment, as its receipt has them; else the build that was chosen."""
    environment = document.at("details", "environment")
    receipt = environment.at("receipt")
    choice = document.at("details", "torch") or environment.at("torch")
    build = choice.at("build")
    newest = build.at("sets").rows[:1]
    versions = receipt.at("versions").items or _smoke_versions(document, comfyui=False)
    if not versions and newest:
        versions = [(name, version) for name, version in newest[0].items if version.text]
    holds = environment.at("holds").flag
    where = environment.at("path").text
    return [
        ("Environment", path(where) if where else ""),
        ("Verified", {True: "yes", False: "no", None: ""}[holds]),
        ("Build", receipt.at("torch_backend").text or build.at("torch_backend").text),
        *((name, version.text) for name, version in versions),
        ("Python", receipt.at("python_version").text),
        ("From", path(build.at("index_url").text) if build.at("index_url").text else ""),
    ]


def _reasons(document: Node) -> Html:
    choice = document.at("details", "torch") or document.at("details", "environment", "torch")
    reasons = choice.at("reasons").texts
    return element("details", element("summary", "Why this build"), paragraphs(reasons)) if reasons else Html("")


def _smoke_versions(document: Node, *, comfyui: bool) -> list[tuple[str, Node]]:
    found = document.at("details", "smoke_test", "versions").items
    return [(name, version) for name, version in found if name.lower().startswith("comfyui") is comfyui]


def _comfyui_rows(document: Node) -> list[tuple[str, str]]:
    comfyui = document.at("details", "comfyui")
    versions = dict(_smoke_versions(document, comfyui=True))
    generated_by = versions.get("comfyui", Node(None)).text
    others = [(name, version.text) for name, version in versions.items() if name != "comfyui"]
    commit = comfyui.at("commit").text
    nodes = comfyui.at("custom_nodes").texts
    where = comfyui.at("path").text
    return [
        ("Version", comfyui.at("version").text or generated_by),
        ("Commit", link(code(commit[:12], title=commit), commit_page(commit)) if commit else ""),
        ("Edited", "yes, its own files were changed" if comfyui.at("has_local_changes").flag else ""),
        ("Folder", path(where) if where else ""),
        ("Custom nodes", ", ".join(nodes)),
        *others,
    ]
