"""The folder that `flash-attn3 run` puts on PYTHONPATH, and what `flash-attn3 override enable` starts at start-up."""
