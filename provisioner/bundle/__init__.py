"""Bundles: all that a machine without a network needs, as an OCI image layout."""
