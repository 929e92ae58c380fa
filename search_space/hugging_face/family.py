"""Family record: one model_type of Hugging Face, as an ordered list of field mappings."""

from dataclasses import dataclass

from ..architecture import Architecture
from .json_fields import Fields
from .mapping import ArchitectureDraft, Config, FieldMapping

Mappings = FieldMapping | tuple["Mappings", ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type; `model_class` is the class of transformers, written to `architectures`.

    With `text_type`, the config of the family is nested in `text_config` and that is its model_type
    there.
    """

    model_type: str
    model_class: str
    mappings: tuple[FieldMapping, ...]
    text_type: str | None = None

    def read(self, fields: Fields) -> ArchitectureDraft:
        """The draft of the architecture; raises InputError for fields that are not allowed."""
        draft = ArchitectureDraft()
        for mapping in self.mappings:
            mapping.read(fields, draft)
        return draft

    def write(self, architecture: Architecture) -> Config:
        """The config of an architecture, without precision; not yet checked to be exact.

        Raises InputError where a mapping has no value for what the architecture has.
        """
        config: Config = {"architectures": [self.model_class], "model_type": self.model_type}
        for mapping in self.mappings:
            mapping.write(architecture, config)
        return config


def family(
    model_type: str, model_class: str, *mappings: Mappings, text_type: str | None = None
) -> Family:
    """A family from mappings and tuples of mappings, in the order in which they need each other."""
    return Family(
        model_type=model_type,
        model_class=model_class,
        mappings=tuple(_flat(mappings)),
        text_type=text_type,
    )


def _flat(mappings: Mappings) -> list[FieldMapping]:
    if isinstance(mappings, tuple):
        return [mapping for inner in mappings for mapping in _flat(inner)]
    return [mappings]
