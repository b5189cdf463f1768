"""What the sections of RUN.yaml are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

from policies.units import Steps

LIMIT = 2**63  # what trainers and files hold integers in
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Strict(False)]
Positive = Annotated[int, Field(gt=0, lt=LIMIT)]
StepCount = Annotated[Steps, Field(gt=0, lt=LIMIT)]


class Section(BaseModel):
    """A section: unknown keys are mistakes, numbers are not read from texts, nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
