"""A chat page for nanochat checkpoints, served by flash_attn3_sm121. Start it with serve.py; README.md says how."""
