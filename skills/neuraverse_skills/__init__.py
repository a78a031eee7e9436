"""Recipes and quality bars, one folder per skill. Never weights, never code."""
