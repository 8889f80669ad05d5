"""Which torch build suits a machine, and why."""
