"""klein-setup: installs FLUX.2 [klein] with everything it needs, verifies it, and repairs it."""

__version__ = "0.1.0"
