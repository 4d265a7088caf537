"""Evaluate pre-trained models: held-out metrics, masks, benchmarks, scaling, few-shot prompts."""
