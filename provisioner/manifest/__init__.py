"""Read, check, lock and cache manifests, and find those that come with the program."""
