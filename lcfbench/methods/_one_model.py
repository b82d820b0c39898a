"""Methods that hand a cache over as it is: receiver and sharer must be the same model."""

from __future__ import annotations

from lcfbench.errors import UserError
from lcfbench.models.protocol import LanguageModel


def check_one_model(method: str, receiver: LanguageModel, sharer: LanguageModel) -> None:
    """Raises UserError where the two differ in shape or revision."""
    if sharer is receiver:
        return
    if receiver.geometry != sharer.geometry or receiver.revision != sharer.revision:
        raise UserError(
            f"{method} needs one model on both sides, not {receiver.name} and {sharer.name}.",
            f"Use --pair {receiver.name}:{receiver.name}.",
        )
