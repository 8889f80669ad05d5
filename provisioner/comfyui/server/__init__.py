"""Start, query, follow and stop a ComfyUI server, and explain its failures.

Only servers started here are stopped, and a server's file names are never used as paths on this machine.
"""
