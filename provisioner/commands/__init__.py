"""What each command does, one file per command, from its options to a report."""
