"""Getting, updating and removing ComfyUI itself."""
