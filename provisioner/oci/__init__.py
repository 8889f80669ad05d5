"""OCI registries and image layouts: which blob is meant, who may ask for it, and where it is."""
