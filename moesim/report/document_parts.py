"""What all checked parts of a stored run have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Part(BaseModel):
    """Reads plain JSON types only; fields that are not drawn are nobody's business here."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def check_lengths(first: list[Any], second: list[Any]) -> None:
    """Refuse lists of different lengths."""
    if len(first) != len(second):
        msg = f"got {len(first)} and {len(second)} rows; accepted: equally many"
        raise ValueError(msg)
