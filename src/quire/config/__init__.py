"""Options: declared once here; flags, YAML, environment and docs derive from the declarations."""
