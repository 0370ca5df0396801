"""Combining two checkpoints into one: rules, plan, arithmetic, stream."""
