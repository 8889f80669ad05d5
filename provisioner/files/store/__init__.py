"""Part files, verification, receipts, block repair, backups: everything that happens to a model file on disk."""
