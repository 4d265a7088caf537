"""List the recipes."""

from typing import Any

from stemformer.recipes import RECIPES


def list_recipes() -> list[dict[str, Any]]:
    """List the recipes with their sizes and purpose.

    Returns:
        `recipe`, `layers`, `hidden_size`, `heads`, `sequence_length`, `batch_size`, `learning_rate` and `purpose` of each.

    Example:
        >>> list_recipes()[0]["recipe"]
        'bert_tiny'
    """
    return [
        {
            "recipe": name,
            "layers": config.model.num_hidden_layers,
            "hidden_size": config.model.hidden_size,
            "heads": config.model.num_attention_heads,
            "sequence_length": config.batch.sequence_length,
            "batch_size": config.batch.size,
            "learning_rate": config.optimizer.learning_rate,
            "purpose": purpose,
        }
        for name, (config, purpose) in RECIPES.items()
    ]
