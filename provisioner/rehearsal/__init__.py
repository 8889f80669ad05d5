"""The embedded hub and the small models of ``klein-setup rehearse``; the tests use the same ones.

Nothing in here is imported by a run against the real Hub.
"""
