"""The API contract: what goes over HTTP, in pydantic and nothing else."""
