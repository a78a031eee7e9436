"""Webhooks: events sent to addresses that organisations name, signed, in order, and again until taken."""
