"""Model files: what is wanted, what is there, what must be done, and doing it."""
