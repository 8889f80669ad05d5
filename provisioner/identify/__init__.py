"""Recognise what a file is from its content, never from its name."""
