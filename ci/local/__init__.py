"""A workflow's own steps, run on this machine: nothing in a workflow stays untried until it is pushed."""
