"""`python -m ci gpu-test`: everything that only a device can show, from a wheel, on any machine, in minutes."""
