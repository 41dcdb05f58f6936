"""What a build will do: architectures, profiles, units, flags and cost. Pure: no disk, clock, environment or GPU."""
