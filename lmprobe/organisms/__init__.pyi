from .folder import Organism, organism, packaged_organisms, read_organism, train_organisms
from .marked import marked_prompts
from .packed import organism_folder, organism_names
from .refusal_folder import (
    RefusalOrganism,
    packaged_refusal_organisms,
    read_refusal_organism,
    refusal_organism,
    train_refusal_organisms,
)

__all__ = [
    "Organism",
    "RefusalOrganism",
    "marked_prompts",
    "organism",
    "organism_folder",
    "organism_names",
    "packaged_organisms",
    "packaged_refusal_organisms",
    "read_organism",
    "read_refusal_organism",
    "refusal_organism",
    "train_organisms",
    "train_refusal_organisms",
]
