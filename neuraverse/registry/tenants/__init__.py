"""Tenants: who asks and what they may; accounts, organisations, robots and what each may have."""
