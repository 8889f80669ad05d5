"""A ComfyUI server: start one, ask it, follow what it draws, stop it.

Stops only what it started itself, and takes no file name of a server for a path on this machine.
"""

from __future__ import annotations

from provisioner.adapters.comfyui.client import ComfyClient, Drawn, DrawProgress
from provisioner.adapters.comfyui.process import ServerProcess, start_server

__all__ = ["ComfyClient", "DrawProgress", "Drawn", "ServerProcess", "start_server"]
