"""What is needed: one Plan of every kind of step, made once, shown, applied."""
