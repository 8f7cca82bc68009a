"""Models of an application that tests share."""

from __future__ import annotations

from pydantic import BaseModel, computed_field


class Computed(BaseModel):
    """A result that cannot be serialized."""

    url: str = "/7.pdf"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        raise RuntimeError("the file is gone")
