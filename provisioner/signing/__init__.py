"""Keys, signatures, and what a signature says: signed locks and attestations."""
