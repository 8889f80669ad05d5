"""ComfyUI itself: its releases, installations, model folders and server."""
