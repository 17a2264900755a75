"""Where test commands run."""
