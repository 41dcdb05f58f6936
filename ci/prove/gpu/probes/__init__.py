"""The code of the child processes, which import the wheel's package: sets of cases, and the loop over them."""
