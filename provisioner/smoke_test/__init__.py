"""The test image: build its graph, generate it with ComfyUI or diffusers, check and measure it."""
