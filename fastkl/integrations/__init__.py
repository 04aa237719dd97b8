"""Where people work: diffusers, k-diffusion, ComfyUI. Each module needs what it is named after, and loads it on use."""
