"""What a setup was when it was verified, kept by name in the user's own data folder."""
