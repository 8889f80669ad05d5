"""What every connection has in common."""
