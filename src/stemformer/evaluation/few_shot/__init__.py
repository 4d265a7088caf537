"""few_shot."""
