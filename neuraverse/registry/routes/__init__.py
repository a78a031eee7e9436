"""The HTTP API, version 1. Routes only translate; the registry's parts decide."""
