"""Steps from one schema to the next, up and down, run by `Database.migrate`."""
