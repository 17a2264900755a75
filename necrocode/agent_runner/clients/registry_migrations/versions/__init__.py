"""One module per step of the schema; a step that has been released never changes."""
