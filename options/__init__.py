"""Option files (*.yaml), the schema they are checked by, and the loader."""
