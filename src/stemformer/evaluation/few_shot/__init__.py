"""Few-shot evaluation: tasks, demonstrations, scoring, synthetic tasks, lm-eval adapter."""
