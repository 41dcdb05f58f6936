"""What runs in the children, with the wheel's own package: sets of cases, and the loop over them."""
