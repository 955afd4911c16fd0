from .folder import Organism, organism, packaged_organisms, read_organism, train_organisms

__all__ = ["Organism", "organism", "packaged_organisms", "read_organism", "train_organisms"]
