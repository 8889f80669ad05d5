"""What a scrub found, as metrics in Prometheus' text format, for node_exporter's textfile collector.

https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from provisioner.files.scrub_order import ScrubSummary

_PREFIX = "klein_setup_scrub_"


def metrics_text(summary: ScrubSummary | None, *, labels: Mapping[str, str], exit_status: int, ended_at: int) -> str:
    r"""Return the content of the file.

    Parameters
    ----------
    summary : ScrubSummary or None
        What was read; None: the run ended with an error before anything was known.
    labels : mapping of str to str
        Which target and set, on every line.
    exit_status : int
        Of the run.
    ended_at : int
        When it ended, in seconds since 1970.

    >>> print(metrics_text(None, labels={"target": 'a"b'}, exit_status=4, ended_at=60), end="")
    # HELP klein_setup_scrub_exit_status Exit status of the last run: 0 right, 1 files are wrong, more: it failed.
    # TYPE klein_setup_scrub_exit_status gauge
    klein_setup_scrub_exit_status{target="a\"b"} 4
    # HELP klein_setup_scrub_last_run_timestamp_seconds When the last run ended, in seconds since 1970.
    # TYPE klein_setup_scrub_last_run_timestamp_seconds gauge
    klein_setup_scrub_last_run_timestamp_seconds{target="a\"b"} 60
    """
    named = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    rows = [
        ("exit_status", "Exit status of the last run: 0 right, 1 files are wrong, more: it failed.", exit_status),
        ("last_run_timestamp_seconds", "When the last run ended, in seconds since 1970.", ended_at),
        *(() if summary is None else _of_summary(summary)),
    ]
    return "".join(
        f"# HELP {_PREFIX}{name} {text}\n# TYPE {_PREFIX}{name} gauge\n{_PREFIX}{name}{{{named}}} {value}\n"
        for name, text, value in rows
    )


def _of_summary(summary: ScrubSummary) -> Iterator[tuple[str, str, int]]:
    yield "files", "Files that there should be.", summary.files
    yield "damaged_files", "Files that are missing, damaged or unreadable.", summary.wrong
    yield "never_verified_files", "Files that no run has read to their end.", summary.never_read
    yield "read_files", "Files that the last run read to their end.", summary.read_files
    yield "read_bytes", "Bytes that the last run read.", summary.read_bytes
    if summary.oldest_age_s is not None:
        text = "How long ago the file was read that was read the longest ago."
        yield "oldest_verified_age_seconds", text, summary.oldest_age_s


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
