"""A running ComfyUI: started, asked, followed, explained, stopped.

Stops only what it started itself, and takes no file name of a server for a path on this machine.
"""
