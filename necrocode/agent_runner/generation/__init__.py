"""What the generate step thinks with: what to show the model, how to ask, and how to read its answer."""
