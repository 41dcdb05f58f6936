"""What a call is: its arguments, the facts about it, and their validation."""
