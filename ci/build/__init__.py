"""From a plan to family libraries: compiling units, linking them, and the artifacts that other machines assemble."""
