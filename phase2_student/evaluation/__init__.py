"""Answers, metrics, speed and memory of models."""
