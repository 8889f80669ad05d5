"""klein-setup: takes a machine from nothing to a proven FLUX.2 [klein] picture, and keeps it there."""

__version__ = "0.1.0"
