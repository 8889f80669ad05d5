"""What an application needs beside the torch set, as requirement lines.

It refuses to name torch or anything that would choose a torch of its own; the set is held by constraints.
"""

from __future__ import annotations

from provisioner.torch.builds import App

# Seen working together on 2026-11-23 with torch 2.13.0, on Python 3.11: the lower bounds (diffusers 0.37.0,
# transformers 5.0.0), and diffusers 0.42.1 with transformers 5.23.0, accelerate 1.15.0, safetensors 0.8.0 and
# pillow 13.0.0.
DIFFUSERS: tuple[str, ...] = (
    "diffusers>=0.37.0,<0.43",  # 0.37.0 is the first release with Flux2KleinPipeline; 0.43 was not run
    # It holds the text encoder: Qwen3ForCausalLM and Qwen2TokenizerFast.  The repository's tokenizer is a
    # `tokenizer.json`, so that neither sentencepiece nor protobuf nor tiktoken is needed (seen without them).
    "transformers>=5.0,<6",
    "accelerate>=1.15,<2",  # parts of the pipeline wait in RAM by it
    "safetensors",  # the format of the weights
    "pillow",  # the generated image is one of its images
)
"""What ``Flux2KleinPipeline`` needs beside torch, as pip takes it."""


def requirement_lines(app: App) -> tuple[str, ...]:
    """Return what an application needs beside torch, as pip takes it; ComfyUI brings a requirements file of its own.

    >>> requirement_lines("diffusers")[0], requirement_lines("comfyui")
    ('diffusers>=0.37.0,<0.43', ())
    """
    return DIFFUSERS if app == "diffusers" else ()
