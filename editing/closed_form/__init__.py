"""The mathematics of closed-form edits: keys, targets, statistics, solvers, spreading over
blocks.
"""
