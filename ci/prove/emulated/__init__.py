"""An aarch64 Linux with Python and torch that runs under qemu-user on any machine, made from Debian's packages."""
