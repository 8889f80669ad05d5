"""Runs the command line as ``python -m provisioner``."""

from provisioner.cli.entry import run

if __name__ == "__main__":
    run()
