"""Virtual environments with a torch set in them: made, checked, repaired, removed."""
