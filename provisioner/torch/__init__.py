"""Choose the torch build for a machine, and say why."""
