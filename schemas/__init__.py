"""The ground floor: values and contracts. Imports the standard library and pydantic, nothing else."""
