"""Manifests: YAML in, Manifest out; locked manifests; those that come with the program."""
