"""What `GET /readyz` tells."""

from pydantic import BaseModel


class Readiness(BaseModel):
    """The answer of `GET /readyz`."""

    status: str
    detail: str
    running: int
