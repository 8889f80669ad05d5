"""Reads any ComfyUI workflow: which model files it needs, and the graph that a server accepts.  Runs none of it."""
