"""What a compression stage says of itself."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageReport:
    """method: `verb/method`. parameters: a count. weight_bytes: of all weights after the stage, as they will be stored."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    weight_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
