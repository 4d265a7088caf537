"""Evaluation: held-out metrics, fill-mask, benchmarks, scaling laws, few-shot prompts."""
