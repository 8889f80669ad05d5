"""The test image: its graph, running it in ComfyUI or diffusers, judging and measuring it."""
