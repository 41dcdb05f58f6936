"""A fresh machine: a bare Debian root in which README's two commands are run as a new user would."""
