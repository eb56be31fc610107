"""Set up and check an installation."""
