"""What a person sees: lines on the terminal, progress, questions, JSON on stdout."""
