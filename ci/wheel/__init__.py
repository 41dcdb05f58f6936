"""From family libraries to a checked wheel: assembly, metadata, provenance."""
