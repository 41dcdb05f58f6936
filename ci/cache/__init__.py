"""The content cache outside the clone: its folders, unpacked archives, and compiled objects by content."""
