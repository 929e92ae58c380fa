"""One model_type of Hugging Face: the parts of its mapping and the class that builds it."""

from dataclasses import dataclass

from ..architecture import Architecture
from .json_fields import Fields
from .parts import Config, Draft, Part

Parts = Part | tuple["Parts", ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """`model_class` goes into `architectures`.

    A file with `text_type` has it all in its text_config, whose model_type that is.
    """

    model_type: str
    model_class: str
    parts: tuple[Part, ...]
    text_type: str | None = None

    def read(self, fields: Fields) -> Draft:
        draft = Draft()
        for part in self.parts:
            part.read(fields, draft)
        return draft

    def write(self, architecture: Architecture) -> Config:
        config: Config = {"architectures": [self.model_class], "model_type": self.model_type}
        for part in self.parts:
            part.write(architecture, config)
        return config


def family(
    model_type: str, model_class: str, *parts: Parts, text_type: str | None = None
) -> Family:
    """A family from its parts, in the order in which they need each other."""
    return Family(
        model_type=model_type,
        model_class=model_class,
        parts=tuple(_flat(parts)),
        text_type=text_type,
    )


def _flat(parts: Parts) -> list[Part]:
    if isinstance(parts, tuple):
        return [part for inner in parts for part in _flat(inner)]
    return [parts]
