"""Simulation: batched MuJoCo physics, tasks, robots, and the Gymnasium environments made of them."""
