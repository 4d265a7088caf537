"""Few-shot evaluation: tasks, prompts, demonstrations, scoring, synthetic tasks, and the lm-eval adapter."""
