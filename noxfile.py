"""What a change has to pass: ``uv run nox``.  Every session but `minimums` installs exactly what ``uv.lock`` says."""

from __future__ import annotations

from pathlib import Path

import nox

OLDEST = "3.10"
DOCS_PYTHON = "3.13"  # Sphinx needs 3.11
DEPLOYMENT_PYTHON = "3.13"  # ansible-lint needs 3.12
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "unit", "contract", "integration", "readme", "docs", "minimums"]


def sync(session: nox.Session, *groups: str) -> None:
    """Install the project and those groups of it, as locked."""
    chosen = [f"--group={group}" for group in groups]
    environ = {"UV_PROJECT_ENVIRONMENT": session.virtualenv.location}
    python = f"--python={session.virtualenv.location}"
    session.run_install("uv", "sync", "--locked", "--no-default-groups", *chosen, python, env=environ, external=True)


def pure_files() -> list[str]:
    """Return the values and decisions, as the table of tests/unit/test_architecture.py has them."""
    from tests.unit.test_architecture import MODULES, ROOT, layer_of

    pure = [path for module, path in MODULES.items() if layer_of(module) in {"value", "decision"}]
    return [path.relative_to(ROOT).as_posix() for path in pure]


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, its formatter, codespell, and compare the locked lists with the lock."""
    sync(session, "test", "lint")
    session.run("python", "scripts/run_checks.py", "--here", "lint")


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy once for each system."""
    sync(session, "test", "lint")
    session.run("python", "scripts/run_checks.py", "--here", "types")


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """Run the unit tests; on one Python also see that no branch of a decision goes untested."""
    sync(session, "test")
    if session.python != PYTHONS[-2] or session.posargs:
        session.run("pytest", "tests/unit", *session.posargs)
        return
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "tests/unit")
    session.run("coverage", "combine")
    session.run("coverage", "report", f"--include={','.join(pure_files())}", "--fail-under=100")


@nox.session
def contract(session: nox.Session) -> None:
    """Run the adapters against what the real things said."""
    sync(session, "test")
    session.run("pytest", "tests/contract", *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """Run the whole program, on loopback and in scratch folders."""
    sync(session, "test")
    session.run("pytest", "tests/integration", *session.posargs)


@nox.session(default=False)
def windows(session: nox.Session) -> None:
    """Run the tests in a Windows Python under Wine; ``-- --require-windows`` fails where there is no Wine."""
    session.run("python3", "scripts/run_windows_tests.py", *session.posargs, external=True)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Run every test and see that 95 % of the branches were taken."""
    sync(session, "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report", "--fail-under=95")


@nox.session
def readme(session: nox.Session) -> None:
    """Compare README.md and docs/ with the program; ``nox -s readme -- --write`` puts them right."""
    sync(session)
    session.run("python", "scripts/check_readme.py", *session.posargs)
    session.run("python", "scripts/make_reference.py", *session.posargs)


@nox.session(python=DOCS_PYTHON)
def docs(session: nox.Session) -> None:
    """Build the pages of docs/ as a site into build/docs; every warning is an error."""
    session.run_install(
        "uv",
        "sync",
        "--locked",
        "--only-group=docs",
        f"--python={session.virtualenv.location}",
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
        external=True,
    )
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs", *session.posargs)


@nox.session(python=OLDEST)
def minimums(session: nox.Session) -> None:
    """Run the tests with the oldest Python and the oldest versions that pyproject.toml admits."""
    session.install("--resolution=lowest-direct", "--group=test", "-e", ".")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Run what needs a CUDA device, on a machine that has one."""
    sync(session, "test")
    session.run("pytest", "-m", "gpu", "tests/gpu", *session.posargs)


@nox.session(default=False)
def sbom(session: nox.Session) -> None:
    """Write dist/klein-setup-VERSION.cdx.json, what the program is made of, and check it."""
    sync(session, "release")
    session.run("python", "scripts/make_sbom.py", *session.posargs)


@nox.session(default=False)
def completions(session: nox.Session) -> None:
    """Write what completes the command in shells, and its man page; ``-s completions -- --check`` compares."""
    sync(session, "release")
    session.run("python", "scripts/make_completions.py", *session.posargs)


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Ask PyPI for known vulnerabilities of what is locked; ``-s audit -- -s osv`` asks OSV."""
    sync(session, "release")
    # Without --strict a package that the service does not know, or could not look up, counts as sound.
    for kind in ("run", "tests"):
        locked = ["--require-hashes", "--disable-pip", "--requirement", f"scripts/locked/{kind}.txt"]
        session.run("pip-audit", "--strict", *locked, *session.posargs)


@nox.session(default=False, python=DEPLOYMENT_PYTHON)
def deployment(session: nox.Session) -> None:
    """Check what others deploy with: the Ansible collection, pods, shell scripts, the action and the Packer snippet."""
    sync(session, "deployment")
    collections = Path(session.create_tmp()).absolute()
    environ = {"ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_HOME": str(collections)}
    install = [
        "ansible-galaxy",
        "collection",
        "install",
        "--offline",
        "--force",
        "scripts/ansible",
        "-p",
        str(collections),
    ]
    session.run(*install, env=environ)
    with session.chdir(collections / "ansible_collections" / "klein_setup" / "fleet"):
        session.run("ansible-lint", "--offline", "--profile", "production", env=environ)
    pods = sorted(map(str, Path("scripts/kubernetes").glob("*.yaml")))
    session.run("kubernetes-validate", "--strict", "-k", "1.35", *pods)
    session.run("shellcheck", *sorted(map(str, Path("scripts/slurm").glob("*.sh"))))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-actions", "scripts/github-action/action.yml")
    session.run("hcl2tojson", "scripts/packer/klein-setup.pkr.hcl", silent=True)
